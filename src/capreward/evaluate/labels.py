"""What people said of captions, read from the layouts of public data sets; errors name file and line."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capreward.errors import InputError, missing_extra
from capreward.evaluate.agreement import Axis, Kind
from capreward.records import Item, Rollout

CHOICES = {"first": 1.0, "second": -1.0, "tie": 0.0}
TIES = ("equal", "tie", "tie (bothbad)")
"""CapArena's words for a tie, as its cal_ranking.py reads them."""


@dataclass(frozen=True)
class Labels:
    """Captions, and what people said of them."""

    layout: str
    rollouts: list[Rollout]
    """Each different caption of an image once; the group is the image."""
    axes: list[Axis]
    left_out: Mapping[str, int]
    """Why rows were left out, and how many."""

    @property
    def images(self) -> NDArray[np.str_]:
        """Image of each caption, [B]."""
        return np.array([rollout.group for rollout in self.rollouts], np.str_)

    def first(self, images: int) -> Labels:
        """The labels of so many images, in the order of the file."""
        kept = set(list(dict.fromkeys(rollout.group for rollout in self.rollouts))[:images])
        rows = np.array([rollout.group in kept for rollout in self.rollouts])
        place = np.cumsum(rows) - 1
        axes = []
        for axis in self.axes:
            of_kept = rows[axis.first]
            second = None if axis.second is None else place[axis.second[of_kept]]
            axes.append(Axis(axis.name, axis.kind, place[axis.first[of_kept]], second, axis.label[of_kept]))
        rollouts = [rollout for rollout in self.rollouts if rollout.group in kept]
        return Labels(self.layout, rollouts, [axis for axis in axes if len(axis.label)], self.left_out)


def read_labels(
    path: str | Path, *, layout: str | None = None, images: Path | None = None, items: Sequence[Item] = ()
) -> Labels:
    """The captions and labels of a file or folder.

    Args:
        path: of the file that holds the labels, or of the folder that holds the files of the layout.
        layout: one of `LAYOUTS`; found out from the content when left out.
        images: folder of the images, by the names that the labels use (item ids, in rows of your own), for components that
            need them. An item that comes with an image keeps it.
        items: what else is known of the images: an item takes the place of the layout's of the same id.

    Raises:
        InputError: no such file, a layout that is unknown or cannot be told, a row that it does not have.
        MissingExtraError: Pascal-50S without scipy.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if layout is None:
        layout = _detected(path)
    if layout not in LAYOUTS:
        raise InputError(f"layout: got {layout!r}, expected one of {', '.join(LAYOUTS)}")
    builder = _Builder(images, items)
    LAYOUTS[layout](path, builder)
    if not builder.axes:
        raise InputError(f"{path}: holds no labels of captions, as layout {layout!r}")
    return builder.labels(layout)


class _Builder:
    """Collects captions and labels; each different caption of an item once."""

    def __init__(self, images: Path | None, items: Sequence[Item]) -> None:
        self.image_folder = images
        self.given = {item.id: item for item in items}
        self.items: dict[str, Item] = {}
        self.rollouts: list[Rollout] = []
        self.rows: dict[tuple[str, str], int] = {}
        self.names: set[str] = set()
        self.axes: dict[str, tuple[Kind, list[tuple[int, int | None, float]]]] = {}
        self.left_out: Counter[str] = Counter()

    def item(self, place: str, name: str, references: Sequence[str] = (), image: str | None = None) -> Item:
        """The item called `name`, once; its image has that name too unless given."""
        if name not in self.items:
            if name in self.given:
                self.items[name] = self.seen(place, self.given[name], image)
            else:
                kept = tuple(text for text in dict.fromkeys(map(str.strip, references)) if text)
                self.items[name] = Item(id=name, references=kept, image=self._image(place, image or name))
        return self.items[name]

    def seen(self, place: str, item: Item, image: str | None = None) -> Item:
        """The item with its image from the folder, if there is a folder and the item has none."""
        if item.image is not None or self.image_folder is None:
            return item
        return item.model_copy(update={"image": self._image(place, image or item.id)})

    def _image(self, place: str, name: str) -> Path | None:
        if self.image_folder is None:
            return None
        tried = [self.image_folder / f"{name}{ending}" for ending in ("", ".jpg", ".png")]
        found = next((path for path in tried if path.is_file()), None)
        if found is None:
            raise InputError(f"{place}: no image {name!r} in {self.image_folder}, with or without .jpg or .png")
        return found

    def caption(self, item: Item, text: str, author: str, group: str | None = None) -> int:
        """Row of a caption. Two systems that say the same of an image share one, under the name of the first."""
        if (item.id, text) not in self.rows:
            row = self.rows[item.id, text] = len(self.rollouts)
            name = f"{item.id}/{author}"
            name = name if name not in self.names else f"{name}#{row}"
            self.names.add(name)
            rollout = Rollout(item=item, caption=text, id=name, group=group or item.id, metadata={"author": author})
            self.rollouts.append(rollout)
        return self.rows[item.id, text]

    def label(self, axis: str, kind: Kind, first: int, second: int | None, value: float) -> None:
        """A label of one caption, or of two: positive if the first is better."""
        self.axes.setdefault(axis, (kind, []))[1].append((first, second, value))

    def labels(self, layout: str) -> Labels:
        axes = []
        for name, (kind, rows) in self.axes.items():
            first, second, values = zip(*rows, strict=True)
            others = None if kind == "rating" else np.array(second, np.intp)
            axes.append(Axis(name, kind, np.array(first, np.intp), others, np.array(values, np.float64)))
        return Labels(layout, self.rollouts, axes, dict(self.left_out))


def _rows(source: Path, builder: _Builder) -> None:
    """Labels of your own, JSONL.

    A row holds `item` (the fields of an `Item`, an image's path relative to the file; or the id of one given), `labels`
    (axis -> label), and `caption` (the labels rate it: numbers) or `first` and `second` (numbers, positive: the first is better;
    or choices: "first", "second" or "tie").
    """
    for place, row in _json_lines(source):
        labels = _field(place, row, "labels", dict)
        holder = row.get("item")
        if isinstance(holder, str):
            if holder not in builder.items | builder.given:
                raise InputError(
                    f"{place}: item: got {holder!r}, expected the fields of an item, or an id given before"
                )
            item = builder.item(place, holder)
        elif isinstance(holder, dict):
            image = holder.get("image")
            if isinstance(image, str) and not image.startswith("data:"):
                holder = holder | {"image": str(source.parent / image)}
            try:
                known = Item(**holder)
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
            given = builder.given.get(known.id)
            known = builder.seen(place, given or known)
            item = builder.items.setdefault(known.id, known)
            if not item.same_as(known):
                raise InputError(f"{place}: item id {known.id!r} has come with other contents before")
        else:
            raise InputError(f"{place}: item: got {holder!r}, expected the fields of an item, or an id given before")
        pair = "first" in row or "second" in row
        texts = [_field(place, row, name, str) for name in (("first", "second") if pair else ("caption",))]
        found = [builder.caption(item, text, str(row.get("author", "caption"))) for text in texts]
        for axis, said in labels.items():
            choice = pair and isinstance(said, str)
            kind: Kind = "choice" if choice else "side by side" if pair else "rating"
            if axis in builder.axes and builder.axes[axis][0] != kind:
                raise InputError(
                    f"{place}: {axis}: got a {kind} label, expected a {builder.axes[axis][0]} label as before"
                )
            if choice and said not in CHOICES:
                raise InputError(f"{place}: {axis}: got {said!r}, expected a number, 'first', 'second' or 'tie'")
            value = CHOICES[said] if choice else _number(place, axis, said)
            builder.label(axis, kind, found[0], found[1] if pair else None, value)


def _imageinwords(source: Path, builder: _Builder) -> None:
    """ImageInWords' side-by-side labels, -2 to 2: `datasets/IIW-400/data.jsonl` and `datasets/DOCCI_Test/data.jsonl`.

    Layout as in the public repository google/imageinwords (Garg et al., arXiv 2405.02793). The reference is the joined
    object descriptions, where there are any.
    """
    for place, row in _json_lines(source):
        name = row.get("image/key", row.get("image"))
        if not isinstance(name, str):
            raise InputError(f"{place}: image/key: got {name!r}, expected the image's name")
        text = _field(place, row, "IIW", str)
        parts = _field(place, {"objects": row.get("objects") or []}, "objects", list)
        if wrong := [part for part in parts if not isinstance(part, dict)]:
            raise InputError(f"{place}: objects: got {wrong[0]!r}, expected objects with a description")
        described = [_field(f"{place}: objects", part, "description", str).strip() for part in parts]
        item = builder.item(place, name, [" ".join(described)])
        metrics = {key: value for key, value in row.items() if key.startswith("metrics/")}
        prefix = "iiw-human-sxs-"
        sides = {key.removeprefix(prefix): _field(place, row, key, dict) for key in row if key.startswith(prefix)}
        if metrics:
            sides["docci"] = metrics
        for other, said in sides.items():
            column = next((key for key in row if key.lower() == other), None)
            if column is None:
                builder.left_out[f"labels against {other}, whose caption the file does not hold"] += 1
                continue
            ours = "IIW" if metrics else "IIW-Human"
            first = builder.caption(item, text, "IIW")
            second = builder.caption(item, _field(place, row, column, str), column)
            for axis, verdict in said.items():
                value = _verdict(f"{place}: {axis}", verdict, ours, column)
                builder.label(axis.removeprefix("metrics/"), "side by side", first, second, value)
        if not sides:
            builder.left_out["images with one caption"] += 1


def _verdict(place: str, said: object, first: str, second: str) -> float:
    if said == "Neutral":
        return 0.0
    match = re.fullmatch(rf"({re.escape(first)}|{re.escape(second)}) is (marginally|substantially) better", str(said))
    if match is None:
        expected = f"'Neutral' or '{first} (or {second}) is marginally (or substantially) better'"
        raise InputError(f"{place}: got {said!r}, expected {expected}")
    return (1.0 if match[1] == first else -1.0) * (1 if match[2] == "marginally" else 2)


def _flickr8k_expert(source: Path, builder: _Builder) -> None:
    """Flickr8k-Expert: three ratings, 1 to 4, of each caption; ExpertAnnotations.txt beside Flickr8k.token.txt.

    Layout as in the data's readme (Hodosh et al., JAIR 2013): image, caption id and three ratings, with tabs between. The
    references are the image's five captions. As in CLIPScore (jmhessel/clipscore, flickr8k_example), captions that are
    among them are left out, and each rating is a label by itself.
    """
    folder = source if source.is_dir() else source.parent
    captions: dict[str, str] = {}
    of_image: dict[str, list[str]] = {}
    for _, (name, text) in _tabbed(folder / "Flickr8k.token.txt", 2):
        captions[name] = text
        of_image.setdefault(name.partition("#")[0], []).append(text)
    for place, (image, name, *ratings) in _tabbed(source if source.is_file() else folder / "ExpertAnnotations.txt", 5):
        if image not in of_image or name not in captions:
            missing = image if image not in of_image else name
            raise InputError(f"{place}: {missing!r} has no caption in {folder / 'Flickr8k.token.txt'}")
        if captions[name] in of_image[image]:
            builder.left_out["captions that are among the references"] += 1
            continue
        row = builder.caption(builder.item(place, image, of_image[image]), captions[name], name)
        for rating in ratings:
            if rating not in ("1", "2", "3", "4"):
                raise InputError(f"{place}: got rating {rating!r}, expected 1, 2, 3 or 4")
            builder.label("expert", "rating", row, None, float(rating))


def _thumb(source: Path, builder: _Builder) -> None:
    """THumB 1.0: ratings of MSCOCO captions for precision, recall and more; mscoco/mscoco_THumB-1.0.jsonl.

    Layout as in the public repository jungokasai/THumB (Kasai et al., arXiv 2111.08940). It holds no references: give
    them as items by the image's file name.
    """
    axes = {
        "P": "precision",
        "R": "recall",
        "Fl": "fluency",
        "Con": "conciseness",
        "Inc": "inclusive",
        "human_score": "total",
    }
    for place, row in _json_lines(source):
        item = builder.item(place, _field(place, row, "image", str))
        found = builder.caption(item, _field(place, row, "hyp", str), _field(place, row, "SYS", str))
        for key, axis in axes.items():
            builder.label(axis, "rating", found, None, _number(place, key, row.get(key)))


def _pascal50s(source: Path, builder: _Builder) -> None:
    """Pascal-50S: which of two captions is closer to each of 48 references, by category of the pair; two MATLAB files.

    `consensus_pascal.mat` and `pair_pascal.mat` of pyCIDErConsensus (Vedantam et al., arXiv 1411.5726), read as in
    jmhessel/clipscore's issue 4: 48 triplets (reference, first, second, winner 1 or -1) a pair. A label is the side with more
    votes; equal votes are a tie, where others draw lots. An axis for each category: HC (two human captions), HI (one of another
    image), HM (human and machine), MM.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise missing_extra("Reading Pascal-50S", "report", error) from error
    folder = source if source.is_dir() else source.parent
    files = []
    for name in ("pair_pascal.mat", "consensus_pascal.mat"):
        try:
            files.append(loadmat(folder / name))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{folder / name}: cannot be read ({error}); expected a MATLAB file of Pascal-50S"
            ) from None
    pairs, votes = files
    for key, content in (("new_input", pairs), ("category", pairs), ("triplets", votes)):
        if key not in content:
            raise InputError(f"{folder}: no {key!r}, expected pair_pascal.mat and consensus_pascal.mat of Pascal-50S")
    texts, triplets = pairs["new_input"][0], votes["triplets"][0]
    if len(triplets) != 48 * len(texts):
        raise InputError(f"{folder}: got {len(triplets)} triplets for {len(texts)} pairs, expected 48 for each")
    for number, (pair, category) in enumerate(zip(texts, pairs["category"].ravel(), strict=True)):
        place = f"{folder / 'pair_pascal.mat'}, pair {number + 1}"
        image, first, second = (_text(field) for field in pair)
        chosen, references = 0, []
        for reference, one, other, winner in triplets[48 * number : 48 * (number + 1)]:
            references.append(_text(reference))
            preferred = _text(one if winner.item() == 1 else other)
            if preferred not in (first, second):
                raise InputError(f"{place}: the votes are about another caption: {preferred!r}")
            chosen += 1 if preferred == first else -1
        if category not in (1, 2, 3, 4):
            raise InputError(f"{place}: got category {category}, expected 1, 2, 3 or 4")
        item = builder.item(
            place, f"{image}#{number + 1}", references, image
        )  # the references differ from pair to pair
        rows = [builder.caption(item, text, author, image) for text, author in ((first, "first"), (second, "second"))]
        builder.label(("HC", "HI", "HM", "MM")[category - 1], "choice", rows[0], rows[1], float(np.sign(chosen)))


def _text(cell: Any) -> str:
    """The text in MATLAB's nested cells."""
    while not isinstance(cell, str):
        cell = cell.flat[0]
    return cell.strip()


def _caparena(source: Path, builder: _Builder) -> None:
    """CapArena: which of two detailed captions is better, or a tie; caparena_annots_eval.json.

    Fields as read by vlm_as_a_judge.py of the public repository njucckevin/CapArena (Cheng et al., arXiv 2503.12329).
    Battles with the human caption are left out, as there: it is the reference.
    """
    try:
        rows = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{source}: not JSON ({error}); expected a list of battles") from None
    if not isinstance(rows, list):
        raise InputError(f"{source}: got {type(rows).__name__}, expected a list of battles")
    for number, row in enumerate(rows, 1):
        place = f"{source}, entry {number}"
        if not isinstance(row, dict):
            raise InputError(f"{place}: got {type(row).__name__}, expected an object")
        keys = ("img", "caption1", "caption2", "source1", "source2", "winner", "ref")
        image, *texts, one, two, winner, reference = (_field(place, row, key, str) for key in keys)
        if "human" in (one, two):
            builder.left_out["battles with the human caption, which is the reference"] += 1
            continue
        item = builder.item(place, image, [reference])
        found = [builder.caption(item, text, author) for text, author in zip(texts, (one, two), strict=True)]
        if winner not in (one, two, *TIES):
            raise InputError(f"{place}: winner: got {winner!r}, expected {one!r}, {two!r} or {TIES[0]!r}")
        value = 1.0 if winner == one else -1.0 if winner == two else 0.0
        builder.label("preference", "choice", found[0], found[1], value)


LAYOUTS: dict[str, Callable[[Path, _Builder], None]] = {
    "rows": _rows,
    "iiw": _imageinwords,
    "flickr8k-expert": _flickr8k_expert,
    "thumb": _thumb,
    "pascal-50s": _pascal50s,
    "caparena": _caparena,
}
"""Reader of each layout, by the name that the command line takes."""


def _detected(path: Path) -> str:
    """The layout, told by the content."""
    found = None
    if path.is_dir():
        of_file = {"ExpertAnnotations.txt": "flickr8k-expert", "pair_pascal.mat": "pascal-50s"}
        found = next((layout for name, layout in of_file.items() if (path / name).is_file()), None)
    elif path.suffix == ".mat":
        found = "pascal-50s"
    elif path.suffix == ".json":
        found = "caparena"
    elif path.suffix == ".txt":
        found = "flickr8k-expert"
    elif path.suffix == ".jsonl":
        _, row = next(_json_lines(path), ("", {}))
        marks = {"labels": "rows", "IIW": "iiw", "hyp": "thumb"}
        found = next((layout for key, layout in marks.items() if key in row), None)
    if found is None:
        raise InputError(f"{path}: its layout cannot be told; name it: --layout {', '.join(LAYOUTS)}")
    return found


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise InputError(f"{path}: got a folder, expected a .jsonl file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not JSON ({error}); expected one object a line") from None
            if not isinstance(row, dict):
                raise InputError(f"{place}: got {type(row).__name__}, expected an object with named fields")
            yield place, row


def _tabbed(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; the layout flickr8k-expert needs it")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would cut captions at other marks too
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); expected {columns} columns with tabs between") from None
    for number, line in enumerate(lines, 1):
        cells = line.strip().split("\t")
        if cells == [""]:
            continue
        if len(cells) != columns:
            raise InputError(f"{path}, line {number}: got {len(cells)} columns, expected {columns} with tabs between")
        yield f"{path}, line {number}", cells


def _field(place: str, row: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    if not isinstance(value := row.get(name), kind):
        expected = "a text" if kind is str else "a list" if kind is list else "an object"
        raise InputError(f"{place}: {name}: got {value!r}, expected {expected}")
    return value


def _number(place: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"{place}: {name}: got {value!r}, expected a finite number")
    return float(value)
