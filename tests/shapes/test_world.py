from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from capreward.errors import InputError
from capreward.shapes import Scene, Thing, draw, scene, scene_of
from capreward.shapes.world import BACKGROUND, CELL, CELLS, CHUNK, PAINT, SHAPES

RED = Thing(colour="red", shape="circle", size="large", cell="top right")
BLUE = Thing(colour="blue", shape="cross", size="small", cell="left")


@given(st.integers())
def test_a_scene_comes_back_from_its_picture(seed: int) -> None:
    made = scene(seed)
    assert 2 <= len(made.things) <= 4
    assert scene_of(draw(made)) == made == scene(seed)


@given(st.integers())
def test_larger_scenes_come_back_from_their_pictures(seed: int) -> None:
    made = scene(seed, fewest=4, most=9)
    assert 4 <= len(made.things) <= 9
    assert scene_of(draw(made)) == made == scene(seed, fewest=4, most=9)
    assert scene(seed, fewest=2, most=4) == scene(seed)


def test_every_number_of_things_is_drawn() -> None:
    assert {len(scene(seed, fewest=2, most=9).things) for seed in range(100)} == set(range(2, 10))
    assert [thing.cell for thing in scene(0, fewest=9, most=9).things] == list(CELLS)


@pytest.mark.parametrize(("fewest", "most"), [(1, 4), (0, 0), (5, 4), (2, 10), (5, 3)])
def test_a_scene_has_two_to_nine_things(fewest: int, most: int) -> None:
    with pytest.raises(InputError, match=f"scene: got fewest={fewest}, most={most}, expected 2 <="):
        scene(0, fewest=fewest, most=most)


def test_the_same_scene_is_drawn_the_same_to_the_byte() -> None:
    assert draw(scene(3)) == draw(scene(3)) != draw(scene(4))


def test_seeds_differ_by_their_sign() -> None:
    assert scene(1) != scene(-1)


def test_things_stand_in_reading_order() -> None:
    assert Scene(things=(BLUE, RED)).things == (RED, BLUE)
    assert (RED.name, RED.row, RED.column) == ("red circle", 0, 2)
    assert (BLUE.row, BLUE.column) == (1, 0)


@pytest.mark.parametrize(
    ("changed", "what"), [({"cell": "left"}, "cell"), ({"colour": "blue", "shape": "cross"}, "name")]
)
def test_things_of_a_scene_differ(changed: dict[str, str], what: str) -> None:
    with pytest.raises(InputError, match=f"differ in their {what}"):
        Scene(things=(BLUE, Thing(**{**RED.model_dump(), **changed})))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_thing_is_painted_in_its_cell_and_nowhere_else(shape: str, cell: str) -> None:
    painted = {}
    for size in ("small", "large"):
        thing = Thing(colour="green", shape=shape, size=size, cell=cell)  # type: ignore[arg-type]
        image = Image.open(BytesIO(draw(Scene(things=(thing,)))))
        colours = {colour: n for n, colour in image.getcolors()}  # type: ignore[union-attr]
        assert set(colours) == {PAINT["green"], BACKGROUND}
        painted[size] = colours[PAINT["green"]]
        x, y = thing.column * CELL, thing.row * CELL
        inside = image.crop((x, y, x + CELL, y + CELL)).getcolors()
        assert {colour: n for n, colour in inside}[PAINT["green"]] == painted[size]  # type: ignore[union-attr]
    assert painted["large"] > 2 * painted["small"]


def with_chunk(text: str) -> bytes:
    info, file = PngInfo(), BytesIO()
    info.add_text(CHUNK, text)
    Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def plain() -> bytes:
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "image",
    [b"", b"no picture", plain(), draw(scene(0))[:30]]
    + [with_chunk(text) for text in ("", "[", "[]", "3", "{}", '{"things": []}', '{"things": [{"colour": "pink"}]}')],
)
def test_another_picture_holds_no_scene(image: bytes) -> None:
    with pytest.raises(InputError, match="scene_of: "):
        scene_of(image)


def test_a_picture_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(draw(scene(5)))
    assert scene_of(tmp_path / "a.png") == scene(5)
    with pytest.raises(FileNotFoundError):
        scene_of(tmp_path / "b.png")


def test_importing_the_room_loads_nothing_heavy() -> None:
    code = "import sys, capreward.shapes; sys.exit(not {'torch', 'PIL', 'transformers'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
