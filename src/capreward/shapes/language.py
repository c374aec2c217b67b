"""The English of the drawn world: what can be said about a scene, and what a text says.

A statement names a thing by colour and shape ("the red circle"), which tell it from the others of its scene. Whatever is
not worded like the patterns here is unclear: the parser understands this language exactly, and no other at all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, pairwise, permutations

from capreward.records import Criterion, Fact, Item, Question
from capreward.shapes.world import CELLS, COLOURS, SHAPES, SIZES, Cell, Scene, Thing, draw, scene

COUNTS = ("two", "three", "four", "five")
MORE_COUNTS = ("six", "seven", "eight", "nine")
"""Counts of larger scenes; questions and facts of smaller ones do without them."""
RELATIONS = {"left of": "right of", "above": "below"}
"""Each with its opposite, by which the same can be said the other way round."""
COMMENTARY = (
    "The scene invites the viewer to reflect.",
    "The composition feels calm and balanced.",
    "This description is accurate and complete.",
)
"""Sentences that point at nothing in the picture; the last one praises itself."""
PRAISE = re.compile(r"\b(?:accurate|complete|perfect|excellent|detailed|flawless|correct|precise)\b")
ABOUT_ITSELF = re.compile(
    r"\b(?:scene|picture|image|viewer|composition|mood|atmosphere|description|caption|score|answer)\b"
)
"""Words that make a clause commentary which makes no statement about a thing."""


class Kind(StrEnum):
    """What a claim is about."""

    THING = "thing"
    SIZE = "size"
    PLACE = "place"
    RELATION = "relation"
    COUNT = "count"
    COMMENTARY = "commentary"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Claim:
    """One atomic statement. Equal claims say the same, however they were worded."""

    kind: Kind
    subject: str = ""
    """The thing that it is about, such as "red circle"; empty for counts, commentary and what is unclear."""
    value: str = ""
    """The size, cell, relation or count; the words themselves of commentary and of what is unclear."""
    other: str = ""
    """The second thing of a relation."""

    @property
    def text(self) -> str:
        """A sentence that says it, without a full stop. `claims` reads it back as this claim alone."""
        match self.kind:
            case Kind.THING:
                return f"there is a {self.subject}"
            case Kind.SIZE:
                return f"the {self.subject} is {self.value}"
            case Kind.PLACE:
                return f"the {self.subject} is at the {self.value}"
            case Kind.RELATION:
                return f"the {self.subject} is {self.value} the {self.other}"
            case Kind.COUNT:
                return f"there are {self.value} things"
            case _:
                return self.value

    @property
    def pointable(self) -> bool:
        """Whether it is a statement about the picture, true or false."""
        return self.kind not in (Kind.COMMENTARY, Kind.UNCLEAR)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a text, taken apart."""

    claims: tuple[Claim, ...]
    """At least one."""
    well_formed: bool
    """Whether it is a whole, grammatical sentence of the language; "red circle, top left" is understood but is none."""
    finished: bool
    """Whether one full stop, question mark or exclamation mark ends it, and not three of them."""


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_NAME = f"(?:{_any(COLOURS)}) (?:{_any(SHAPES)})"
_THING = re.compile(
    rf"(?P<there>there is )?(?P<article>an? |the )?(?:(?P<size>{_any(SIZES)}) )?(?P<name>{_NAME})"
    rf"(?: (?P<verb>is )?(?:(?P<is_size>{_any(SIZES)})|(?:at|in) the (?P<cell>{_any(CELLS)})"
    rf"|(?P<relation>{_any([*RELATIONS, *RELATIONS.values()])}) (?:a|the) (?P<other>{_NAME})))?"
)
_COUNT = re.compile(rf"there are (?P<count>{_any([*COUNTS, *MORE_COUNTS])}) things")
_SENTENCE = re.compile(r"([^.!?\n]+)([.!?]*)")
_JOINT = re.compile(r"[,;:]|\band\b")
_AROUND = " \"'()[]*_-“”‘’"
_COMMENTARY = frozenset(sentence.rstrip(".").lower() for sentence in COMMENTARY)


def sentences(text: str) -> list[Sentence]:
    """Any text, taken apart; nothing is an error. Upper and lower case are the same."""
    parsed = []
    for match in _SENTENCE.finditer(text.lower()):
        body, finished = _clean(match[1]), len(match[2]) == 1
        if body in _COMMENTARY:
            parsed.append(Sentence((Claim(Kind.COMMENTARY, value=body),), True, finished))
        elif clauses := [clause for part in _JOINT.split(body) if (clause := _clean(part))]:
            read = [_read(clause) for clause in clauses]
            made = tuple(claim for claims_, _ in read for claim in claims_)
            # later clauses may leave out the verb: "there is a red circle and a blue cross"
            whole = read[0][1] and all(claim.pointable for claim in made)
            parsed.append(Sentence(made, whole, finished))
    return parsed


def claims(text: str) -> list[Claim]:
    """Everything that a text claims, each once, in its order."""
    return list(dict.fromkeys(claim for sentence in sentences(text) for claim in sentence.claims))


def _clean(text: str) -> str:
    return " ".join(text.split()).strip(_AROUND)


def _read(clause: str) -> tuple[list[Claim], bool]:
    """The claims of a clause, and whether it is grammatical by itself."""
    if match := _COUNT.fullmatch(clause):
        return [Claim(Kind.COUNT, value=match["count"])], True
    match = _THING.fullmatch(clause)
    if not match or (match["there"] and (match["verb"] or match["is_size"] or match["relation"])):
        kind = Kind.COMMENTARY if ABOUT_ITSELF.search(clause) else Kind.UNCLEAR
        return [Claim(kind, value=clause)], False
    name, made = match["name"], []
    for size in (match["size"], match["is_size"]):
        if size:
            made.append(Claim(Kind.SIZE, name, size))
    if match["cell"]:
        made.append(Claim(Kind.PLACE, name, match["cell"]))
    if match["relation"]:
        made.append(_relation(name, match["relation"], match["other"]))
    if match["article"] != "the " or not made:  # "the red circle is large" takes it for known that there is one
        made.insert(0, Claim(Kind.THING, name))
    return made, match["article"] in ("a ", "the ") and bool(match["there"] or match["verb"])


def _relation(one: str, relation: str, other: str) -> Claim:
    """With "right of" and "below" turned round, so that the same relation is the same claim."""
    for forth, back in RELATIONS.items():
        if relation == back:
            return Claim(Kind.RELATION, other, forth, one)
    return Claim(Kind.RELATION, one, relation, other)


def units(scene: Scene) -> list[Claim]:
    """What a complete caption says: how many things there are, and of each what, how large and where it is."""
    return [Claim(Kind.COUNT, value=_count(scene)), *(c for t in scene.things for c in _about(t))]


def truths(scene: Scene) -> frozenset[Claim]:
    """Every claim that is true of the scene."""
    places = {thing.name: thing.cell for thing in scene.things}
    return frozenset(units(scene)) | _relations(places)


def _counts(scene: Scene) -> tuple[str, ...]:
    """The scene's count and the wrong ones beside it."""
    return COUNTS if len(scene.things) <= 5 else COUNTS + MORE_COUNTS


def _count(scene: Scene) -> str:
    return _counts(scene)[len(scene.things) - 2]


def _about(thing: Thing) -> list[Claim]:
    return [
        Claim(Kind.THING, thing.name),
        Claim(Kind.SIZE, thing.name, thing.size),
        Claim(Kind.PLACE, thing.name, thing.cell),
    ]


def _relations(places: dict[str, Cell]) -> set[Claim]:
    """Those that follow from where things are."""
    found = set()
    for (one, cell), (other, other_cell) in permutations(places.items(), 2):
        (row, column), (other_row, other_column) = (divmod(CELLS.index(c), 3) for c in (cell, other_cell))
        found |= {Claim(Kind.RELATION, one, "left of", other)} if column < other_column else set()
        found |= {Claim(Kind.RELATION, one, "above", other)} if row < other_row else set()
    return found


def rivals(claim: Claim) -> list[tuple[object, ...]]:
    """What the claim settles: two different claims that settle the same thing contradict each other."""
    match claim.kind:
        case Kind.SIZE:
            return [(Kind.SIZE, claim.subject)]
        case Kind.PLACE:
            return [(Kind.PLACE, claim.subject), (Kind.PLACE, claim.value)]
        case Kind.RELATION:
            return [(claim.value, frozenset((claim.subject, claim.other)))]
        case Kind.COUNT:
            return [(Kind.COUNT,)]
        case _:
            return []


def said(text: str) -> set[Claim]:
    """The claims of a text and those that they plainly imply, without those that another claim of the text contradicts.

    Whatever is said of a thing implies that there is one; two places imply how the things stand to each other.
    """
    made = claims(text)
    settled: dict[tuple[object, ...], set[Claim]] = {}
    for claim in made:
        for what in rivals(claim):
            settled.setdefault(what, set()).add(claim)
    clear = {claim for claim in made if all(len(settled[what]) == 1 for what in rivals(claim))}
    things = {Claim(Kind.THING, name) for claim in made for name in (claim.subject, claim.other) if name}
    cells: dict[str, Cell] = {name: name for name in CELLS}
    return clear | things | _relations({c.subject: cells[c.value] for c in clear if c.kind is Kind.PLACE})


def sentence_of(thing: Thing, *, size: bool = True, place: bool = True, there: bool = False) -> str:
    """One sentence about a thing: "A large red circle is at the top left."; `there` begins it with "There is".

    Without a place it begins with "There is" in any case.
    """
    noun = f"{thing.size} {thing.name}" if size else thing.name
    if not place:
        return f"There is a {noun}."
    return f"There is a {noun} at the {thing.cell}." if there else f"A {noun} is at the {thing.cell}."


def count_of(scene: Scene) -> str:
    """The sentence that says how many things there are."""
    return f"There are {_count(scene)} things."


def caption(scene: Scene, *, there: bool = False) -> str:
    """A complete caption, which says every one of the scene's `units`."""
    return " ".join([count_of(scene), *(sentence_of(thing, there=there) for thing in scene.things)])


def facts(scene: Scene) -> list[Fact]:
    """Every claim about a thing of the scene, true or false, things that are not there, wrong counts and commentary.

    So a claim about the picture is true, or makes a false one of them.
    """
    names = [thing.name for thing in scene.things]
    possible = [
        *(Claim(Kind.THING, f"{colour} {shape}") for colour in COLOURS for shape in SHAPES),
        *(Claim(Kind.SIZE, name, size) for name in names for size in SIZES),
        *(Claim(Kind.PLACE, name, cell) for name in names for cell in CELLS),
        *(Claim(Kind.RELATION, a, relation, b) for a, b in permutations(names, 2) for relation in RELATIONS),
        *(Claim(Kind.COUNT, value=count) for count in _counts(scene)),
    ]
    true = truths(scene)
    return [
        *(Fact(text=claim.text, true=claim in true) for claim in possible),
        *(Fact(text=sentence, pointable=False) for sentence in COMMENTARY),
    ]


COLOUR_AT, SHAPE_AT = "What colour is the thing at the {}?", "What shape is the thing at the {}?"
SIZE_OF, PLACE_OF = "What size is the {}?", "Where is the {}?"
HOW_MANY = "How many things are there?"


def questions(scene: Scene, chance: random.Random) -> list[Question]:
    """Colour, shape, size and place of each thing, and how many there are; four options each.

    Wrong options are taken from the other things of the scene first (`hard`), then from what the world has.
    """
    made = []
    for thing in scene.things:
        others = [other for other in scene.things if other is not thing]
        asked: list[tuple[str, str, str, Sequence[str], Sequence[str]]] = [
            ("colour", COLOUR_AT.format(thing.cell), thing.colour, [t.colour for t in others], COLOURS),
            ("shape", SHAPE_AT.format(thing.cell), thing.shape, [t.shape for t in others], SHAPES),
            ("size", SIZE_OF.format(thing.name), thing.size, [t.size for t in others], ("tiny", *SIZES, "huge")),
            (
                "place",
                PLACE_OF.format(thing.name),
                f"at the {thing.cell}",
                [f"at the {t.cell}" for t in others],
                [f"at the {cell}" for cell in CELLS],
            ),
        ]
        made += [_question(*question, chance) for question in asked]
    return [*made, _question("count", HOW_MANY, _count(scene), (), _counts(scene), chance)]


def _question(
    kind: str, text: str, answer: str, near: Sequence[str], far: Sequence[str], chance: random.Random
) -> Question:
    near = [option for option in dict.fromkeys(near) if option != answer]
    if len(near) > 3:  # any of them: the first three would tell where in the scene the answer is not
        near = chance.sample(near, 3)
    far = [option for option in far if option != answer and option not in near]
    options = [answer, *near, *chance.sample(far, 3 - len(near))]
    chance.shuffle(options)
    return Question(text=text, options=tuple(options), answer=options.index(answer), kind=kind, hard=bool(near))


def item(scene: Scene, name: str) -> Item:
    """The scene as an item that has everything: picture, references, units, facts, questions and a rubric.

    The rubric's criteria are the units: that there is a thing weighs 3, where it is and how many there are 2, its size 1.
    """
    weights = {Kind.THING: 3.0, Kind.PLACE: 2.0, Kind.COUNT: 2.0, Kind.SIZE: 1.0}
    complete = units(scene)
    return Item(
        id=name,
        image=draw(scene),
        references=(caption(scene), " ".join([caption(scene, there=True), *_related(scene)])),
        reference_units=tuple(claim.text for claim in complete),
        facts=tuple(facts(scene)),
        questions=tuple(questions(scene, random.Random(f"questions {scene.model_dump_json()}"))),
        rubric=tuple(Criterion(text=claim.text, weight=weights[claim.kind]) for claim in complete),
    )


def _related(scene: Scene) -> list[str]:
    """A sentence for each two things: one of them is left of the other, or else above it.

    In scenes of more than four, for each two neighbours in reading order.
    """
    true = truths(scene)
    found = []
    names = [thing.name for thing in scene.things]
    for pair in combinations(names, 2) if len(names) <= 4 else pairwise(names):
        claims_ = [Claim(Kind.RELATION, a, relation, b) for relation in RELATIONS for a, b in permutations(pair)]
        found.append(f"{next(claim for claim in claims_ if claim in true).text.capitalize()}.")
    return found


def items(count: int, seed: int = 0, *, fewest: int = 2, most: int = 4) -> list[Item]:
    """`count` items with the ids "shapes-SEED-0", "shapes-SEED-1" and so on; the first ones are the same for any count.

    Scenes of another size than by default, `fewest` to `most` things each, have it in their ids: "shapes-SEED-4to8-0".

    Raises:
        InputError: not 2 <= fewest <= most <= 9.
        MissingExtraError: pillow is not installed.
    """
    name = f"shapes-{seed}" if (fewest, most) == (2, 4) else f"shapes-{seed}-{fewest}to{most}"
    return [
        item(
            scene(random.Random(f"item {seed} {number}").getrandbits(62), fewest=fewest, most=most), f"{name}-{number}"
        )
        for number in range(count)
    ]
