"""Scenes of a few coloured shapes on a 3 x 3 grid, and pictures of them that carry the truth."""

from __future__ import annotations

import json
import random
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field, field_validator

from capreward.errors import InputError, missing_extra
from capreward.records import Record

if TYPE_CHECKING:
    from PIL import Image

Colour = Literal["red", "green", "blue", "yellow", "purple", "black"]
Shape = Literal["circle", "square", "triangle", "cross"]
Size = Literal["small", "large"]
Cell = Literal[
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"
]  # fmt: skip
COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
SIZES: tuple[Size, ...] = get_args(Size)
CELLS: tuple[Cell, ...] = get_args(Cell)
"""In reading order."""

CELL = 16
"""Side of a cell in pixels: one patch of the captioner's vision tower sees one cell."""
SIDE = 3 * CELL
BACKGROUND = (240, 240, 236)
PAINT: dict[Colour, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (40, 90, 215),
    "yellow": (245, 200, 30),
    "purple": (140, 60, 170),
    "black": (25, 25, 25),
}
RADIUS: dict[Size, int] = {"small": 3, "large": 6}
CHUNK = "capreward.shapes"
"""Keyword of the PNG text chunk that holds the scene."""


class Thing(Record):
    """One shape."""

    colour: Colour
    shape: Shape
    size: Size
    cell: Cell

    @property
    def name(self) -> str:
        """Such as "red circle": what tells it from the other things of its scene."""
        return f"{self.colour} {self.shape}"

    @property
    def row(self) -> int:
        """0 is the top one."""
        return CELLS.index(self.cell) // 3

    @property
    def column(self) -> int:
        """0 is the left one."""
        return CELLS.index(self.cell) % 3


class Scene(Record):
    """Things in reading order: no two in one cell, no two of the same colour and shape."""

    things: tuple[Thing, ...] = Field(min_length=1)

    @field_validator("things")
    @classmethod
    def _distinct(cls, things: tuple[Thing, ...]) -> tuple[Thing, ...]:
        for what, values in (("cell", {t.cell for t in things}), ("name", {t.name for t in things})):
            if len(values) < len(things):
                raise ValueError(f"expected things that differ in their {what}")
        return tuple(sorted(things, key=lambda thing: CELLS.index(thing.cell)))


def scene(seed: int, *, fewest: int = 2, most: int = 4) -> Scene:
    """`fewest` to `most` things, drawn from the seed.

    Raises:
        InputError: not 2 <= fewest <= most <= 9: counts begin at two, and there are nine cells.
    """
    if not 2 <= fewest <= most <= len(CELLS):
        raise InputError(f"scene: got fewest={fewest}, most={most}, expected 2 <= fewest <= most <= {len(CELLS)}")
    chance = random.Random(f"scene {seed}")
    count = chance.randint(fewest, most)
    names = chance.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], count)
    return Scene(
        things=tuple(
            Thing(colour=colour, shape=shape, size=chance.choice(SIZES), cell=cell)
            for (colour, shape), cell in zip(names, chance.sample(CELLS, count), strict=True)
        )
    )


def picture(scene: Scene) -> Image.Image:
    """The scene as an image of 48 x 48 pixels. Each thing stands up to a pixel off its cell's middle, always the same way.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise missing_extra("capreward.shapes", "local", error) from error
    image = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    brush = ImageDraw.Draw(image)
    chance = random.Random(scene.model_dump_json())
    for thing in scene.things:
        x = thing.column * CELL + CELL // 2 + chance.randint(-1, 0)
        y = thing.row * CELL + CELL // 2 + chance.randint(-1, 0)
        r, paint = RADIUS[thing.size], PAINT[thing.colour]
        box = (x - r, y - r, x + r, y + r)
        match thing.shape:
            case "circle":
                brush.ellipse(box, fill=paint)
            case "square":
                brush.rectangle(box, fill=paint)
            case "triangle":
                brush.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=paint)
            case "cross":
                brush.rectangle((x - r // 3, y - r, x + r // 3, y + r), fill=paint)
                brush.rectangle((x - r, y - r // 3, x + r, y + r // 3), fill=paint)
    return image


def draw(scene: Scene) -> bytes:
    """`picture` as a PNG that carries the scene in a text chunk: the same scene gives the same bytes.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    image = picture(scene)
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(CHUNK, scene.model_dump_json())
    file = BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def scene_of(image: bytes | Path) -> Scene:
    """The scene that a picture of `draw` shows.

    Raises:
        InputError: it is another picture, or none.
        OSError: the file cannot be read.
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise missing_extra("capreward.shapes", "local", error) from error
    data = image if isinstance(image, bytes) else image.read_bytes()
    try:
        with Image.open(BytesIO(data)) as opened:
            text = opened.info.get(CHUNK)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"scene_of: got what is no readable picture ({error})") from error
    try:
        if text is not None:
            return Scene(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise InputError(f"scene_of: the picture's {CHUNK!r} chunk holds no scene ({error})") from error
    raise InputError(f"scene_of: the picture has no {CHUNK!r} chunk; expected one made by capreward.shapes.draw")
