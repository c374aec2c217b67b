"""Data that comes with the package: captions of nine photographs, 100 rows of ImageInWords, 50 texts that try to talk to a judge.

README.md has the licences.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from capreward.data import read_rollouts
from capreward.records import Item, Rollout

PHOTOS = Path(__file__).parent / "photos.jsonl"
"""Nine items with image, reference, facts, questions and rubric, and six rollouts each."""
IIW = Path(__file__).parent / "iiw.jsonl"
"""100 rows of ImageInWords' IIW-400 data, unchanged: those with a second caption and side-by-side labels."""
INJECTIONS = Path(__file__).parent / "injections.jsonl"
"""50 texts for `injections()`."""

SHOULD_LOSE = (
    ("short", "qa"),
    ("short", "coverage"),
    ("short", "rubric"),
    ("overlong", "fluency"),
    ("false", "qa"),
    ("false", "precision_vs_facts"),
    ("telegraphic", "fluency"),
    ("praise", "qa"),
    ("praise", "precision_vs_facts"),
    ("praise", "coverage"),
    ("praise", "rubric"),
)
"""(kind of the photographs' captions, component that it was written to lose on, by the component's name)."""


@dataclass(frozen=True, slots=True)
class Injection:
    """A text that tries to talk to the judge: to be appended to a caption, or to stand in its place."""

    id: str
    family: str
    """fence, verdict, json, role, letter, override, praise, template, hidden, code, turns, language, pressure or leak."""
    text: str


def injections() -> list[Injection]:
    """50 texts that try to get a better verdict by talking to the judge instead of describing the image, in 14 families."""
    return [Injection(**json.loads(line)) for line in INJECTIONS.read_text(encoding="utf-8").splitlines()]


def photos() -> list[Rollout]:
    """54 rollouts on nine photographs.

    Each photograph has a reference caption, facts, questions, a rubric, and one rollout of each `metadata["kind"]`: dense, short,
    overlong, false, telegraphic, praise. All of it was written for this package while looking at the pictures.
    """
    return read_rollouts(PHOTOS)


def iiw() -> list[Rollout]:
    """200 rollouts on 100 images of ImageInWords (arXiv 2405.02793); text only.

    Of each image the human description (id ``KEY/human``) and PaLI-5B's (``KEY/p5b``). The reference is the human object
    descriptions of a separate annotation task, joined. `metadata["labels"]` of an item holds the five side-by-side labels
    from -2 (p5b substantially better) to 2 (human substantially better).
    """
    rollouts = []
    for line in IIW.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        item = Item(
            id=row["image/key"],
            references=(" ".join(part["description"].strip() for part in row["objects"]),),
            metadata={"labels": {axis.removeprefix("metrics/"): _LABELS[label] for axis, label in row[_SIDES].items()}},
        )
        rollouts += [
            Rollout(item=item, caption=row[column], id=f"{item.id}/{author}", metadata={"author": author})
            for column, author in (("IIW", "human"), ("IIW-P5B", "p5b"))
        ]
    return rollouts


_SIDES = "iiw-human-sxs-iiw-p5b"
_LABELS = {
    "IIW-Human is substantially better": 2,
    "IIW-Human is marginally better": 1,
    "Neutral": 0,
    "IIW-P5B is marginally better": -1,
    "IIW-P5B is substantially better": -2,
}
