"""The drawn world's writers, eyes, guessers, teachers and students, whose faults are known: nobody of them is a model.

Everything is drawn from seeds, the request and the scene that its picture carries, so a judge gives the same request the
same reply. What is true of a question or a mistake is told by functions here, which no stage sees.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from capreward.curate.rubrics import WEIGHTS
from capreward.judges.base import Reply, Request, Task
from capreward.judges.fake import FunctionJudge
from capreward.missing import Missing
from capreward.records import Question, words
from capreward.shapes import Claim, Kind, Scene, ShapesJudge, Thing, caption, claims, scene_of
from capreward.shapes.judge import choose
from capreward.shapes.language import (
    COLOUR_AT,
    COUNTS,
    HOW_MANY,
    PLACE_OF,
    SHAPE_AT,
    SIZE_OF,
    questions,
    said,
    sentence_of,
)
from capreward.shapes.world import CELLS, COLOURS, SHAPES, SIZES

# ---- questions: what is asked

WORDINGS = {
    COLOUR_AT: "Which colour does the object at the {} have?",
    SHAPE_AT: "Which shape does the object at the {} have?",
    SIZE_OF: "How big is the {}?",
    PLACE_OF: "In which part of the picture is the {}?",
    HOW_MANY: "What is the number of things in the picture?",
}
"""The world's own wording of each question, and another."""
HINTS = {"circle": "round", "square": "four-cornered", "triangle": "three-cornered", "cross": "plus-like"}
WHICH = "Which of these can be seen?"
ALL = ("all of the above", "all of these", "every one of them")
"""The filter's rule knows two of the three."""
MORE = "as far as anybody can tell who takes a good look".split()
"""Words that make the right option longer, two to ten of them: the rule asks for four."""
PRIORS = {SIZE_OF: "large", HOW_MANY: "four"}
"""What a guesser takes who sees nothing."""
SURE = {"worded": 0.95, "implied": 0.95, "all of them": 0.7, "longest": 0.7, "prior": 0.8}
"""How often a guesser follows each sign; else it takes any option."""
LEAKS = ("worded", "longest", "all of them")
"""Faults that a look at the words can find."""
SHARES = {
    "sound": 0.52,
    "wrong key": 0.10,
    "worded": 0.05,
    "implied": 0.07,
    "longest": 0.06,
    "all of them": 0.04,
    "same words": 0.04,
    "rephrased": 0.06,
    "malformed": 0.06,
}
"""Of what the writer sets out to write. A `sound` question turns out `misseen` where the writer saw wrong, and `prior` where a
guesser takes the right option."""
WRITTEN = 14
"""Questions that it writes for each picture."""


@dataclass(frozen=True, slots=True)
class Written:
    """A question as it was written, and what is wrong with it."""

    text: str
    """JSON, or what should have been."""
    fault: str
    """"" if it is good."""


def drawn(*parts: object) -> random.Random:
    """A source of chance that depends on these alone."""
    return random.Random(" ".join(map(str, parts)))


@lru_cache(maxsize=4096)
def seen(image: Any) -> Scene:
    """The scene that a picture carries."""
    return scene_of(image)


@lru_cache(maxsize=4096)
def perceived(scene: Scene, who: str, rate: float) -> Scene:
    """The scene as `who` sees it each time: each feature of each thing another one with the probability `rate`."""
    chance = drawn("perceived", who, rate, scene.model_dump_json())
    things = list(scene.things)
    for place, thing in enumerate(things):
        for feature, all_ in {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "cell": CELLS}.items():
            if chance.random() < rate:
                others = [each for each in all_ if each != getattr(thing, feature)]
                thing = thing.model_copy(update={feature: chance.choice(others)})
        rest = things[:place] + things[place + 1 :]
        if all(thing.name != other.name and thing.cell != other.cell for other in rest):
            things[place] = thing
    return Scene(things=tuple(things))


@lru_cache(maxsize=2**16)
def plain(text: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The question and its options in the world's own words, without hints and what makes an option longer."""
    text = text[:1].upper() + text[1:].lower()
    for own, other in WORDINGS.items():
        if match := re.fullmatch(re.escape(other).replace(r"\{\}", "(.+)"), text):
            text = own.format(*match.groups())
    text = re.sub(rf" (?:{'|'.join(HINTS.values())}) thing ", " thing ", text)
    text = re.sub(rf" (?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}) at the ", " thing at the ", text)
    return text, tuple(option.partition(",")[0].lower() for option in options)


@lru_cache(maxsize=2**18)
def told(context: str, text: str, options: frozenset[str]) -> frozenset[str]:
    """The options that the context answers with; all of them if it does not tell."""
    order = tuple(sorted(options))
    asked, own = plain(text, order)
    if asked == WHICH:
        named = {f"a {c.subject}" for c in claims(context) if c.kind is Kind.THING}
        shown = [option for option, short in zip(order, own, strict=True) if short in named]
        every = [option for option, short in zip(order, own, strict=True) if short in ALL]
        return frozenset(every if len(shown) == len(order) - 1 else shown or order)
    reply = choose(Request(Task.CHOOSE, context, own, asked))
    assert isinstance(reply, Reply), f"{text!r} is no question that the writer asks"
    return frozenset(option for option, p in zip(order, reply.values, strict=True) if p > 0)


def true_answer(scene: Scene, question: Question) -> str | None:
    """The option that is true of the scene; None if no one is, or the question takes for granted what is not so."""
    answers = told(caption(scene), question.text, frozenset(question.options))
    return next(iter(answers)) if len(answers) == 1 else None


# ---- questions: guessing


@lru_cache(maxsize=2**16)
def hunch(text: str, options: frozenset[str]) -> tuple[str, str] | None:
    """The option that somebody would take who sees nothing, and by which sign."""
    asked, shown = set(words(text.lower())), sorted(options)
    if len(given := [option for option in shown if set(words(option.lower())) <= asked]) == 1:
        return given[0], "worded"
    for shape, hint in HINTS.items():
        if f" {hint} " in text and shape in options:
            return shape, "implied"
    if every := [option for option in shown if option.lower() in ALL]:
        return every[0], "all of them"
    *_, next_longest, longest = sorted(shown, key=lambda option: len(words(option)))
    if len(words(longest)) >= len(words(next_longest)) + 2:
        return longest, "longest"
    own = plain(text, tuple(shown))[0]
    for template, value in PRIORS.items():
        if re.fullmatch(re.escape(template).replace(r"\{\}", ".+"), own):
            return next(((option, "prior") for option in shown if option.lower() == value), None)
    return None


def odds(text: str, options: Sequence[str], option: str) -> float:
    """The probability that a guesser without a liking for a place takes this option."""
    favourite = hunch(text, frozenset(options))
    sure = SURE[favourite[1]] if favourite else 0.0
    return (1 - sure) / len(options) + sure * (favourite is not None and favourite[0] == option)


def guess(text: str, options: Sequence[str], chance: random.Random, first: float = 0.0) -> str:
    """An option, drawn by `odds`; with the probability `first` the one that stands first."""
    if chance.random() < first:
        return options[0]
    favourite = hunch(text, frozenset(options))
    if favourite and chance.random() < SURE[favourite[1]]:
        return favourite[0]
    return chance.choice(options)


# ---- questions: writing


def write(
    scene: Scene, *, count: int = WRITTEN, shares: Mapping[str, float] = SHARES, misseen: float = 0.03, seed: int = 0
) -> list[Written]:
    """What the writer writes about a scene, with what is wrong with each; fewer than `count` if it runs out of things to ask.

    Args:
        shares: of what it sets out to write.
        misseen: share of the features of things that it sees wrong, and writes about as it sees them.
    """
    chance = drawn("write", seed, scene.model_dump_json())
    mine = perceived(scene, "model", misseen)
    base = questions(mine, chance)
    chance.shuffle(base)
    made: list[tuple[Question, str]] = []
    out: list[Written] = []
    for number in range(count):
        aim = "sound" if number == 0 else chance.choices(list(shares), list(shares.values()))[0]
        earlier = [question for question, fault in made if fault in ("sound", "wrong key")]
        match aim:
            case "same words" | "rephrased" if earlier:
                question = _again(chance.choice(earlier), aim, chance)
            case "all of them" if len(mine.things) >= 3:
                named = [f"a {thing.name}" for thing in chance.sample(mine.things, 3)]
                question = Question(text=WHICH, options=(*named, chance.choice(ALL)), answer=3, kind="object")
            case _ if not base:
                break
            case _:
                want = {"worded": ("colour", "shape"), "implied": ("shape",)}.get(aim)
                fit = [each for each in base if want is None or each.kind in want]
                aim = aim if fit and aim not in ("same words", "rephrased", "all of them") else "sound"
                question = (fit or base)[0]
                base.remove(question)
                question = _spoilt(question, aim, mine, chance)
        text = _malformed(question, chance) if aim == "malformed" else _json(question)
        made.append((question, aim))
        out.append(Written(text, _fault(scene, question, aim)))
    return out


def _again(question: Question, aim: str, chance: random.Random) -> Question:
    """The same question once more."""
    if aim == "same words":
        order = chance.sample(question.options, len(question.options))
        answer = order.index(question.options[question.answer])
        return Question(text=question.text.lower(), options=tuple(order), answer=answer, kind=question.kind)
    for own, other in WORDINGS.items():
        if match := re.fullmatch(re.escape(own).replace(r"\{\}", "(.+)"), question.text):
            return question.model_copy(update={"text": other.format(*match.groups())})
    raise AssertionError(question.text)


def _spoilt(question: Question, aim: str, scene: Scene, chance: random.Random) -> Question:
    """The question with the fault; as it is if it is to be sound, or malformed."""
    right = question.options[question.answer]
    cell = question.text.partition(" at the ")[2].rstrip("?")
    match aim:
        case "wrong key":
            wrong = [place for place in range(len(question.options)) if place != question.answer]
            return question.model_copy(update={"answer": chance.choice(wrong)})
        case "worded":
            thing = next(each for each in scene.things if each.cell == cell)
            return question.model_copy(update={"text": f"What {question.kind} is the {thing.name} at the {cell}?"})
        case "implied":
            return question.model_copy(update={"text": f"What shape is the {HINTS[right]} thing at the {cell}?"})
        case "longest":
            longer = f"{right}, {' '.join(MORE[: chance.randint(2, len(MORE))])}"
            options = tuple(longer if option == right else option for option in question.options)
            return question.model_copy(update={"options": options})
    return question


def _json(question: Question, **other: Any) -> str:
    entry = {
        "kind": {"colour": "attribute", "size": "attribute", "shape": "object", "place": "position"}.get(
            question.kind or "", question.kind
        ),
        "question": question.text,
        "options": list(question.options),
        "answer": question.options[question.answer],
    }
    return json.dumps(entry | other)


def _malformed(question: Question, chance: random.Random) -> str:
    """One of the ways in which language models get it wrong."""
    right = question.options[question.answer]
    match chance.randrange(5):
        case 0:
            return _json(question)[:-9]
        case 1:
            return _json(question, answer="ABCD"[question.answer])
        case 2:
            return _json(question, options="; ".join(question.options))
        case 3:
            return _json(question, options=[right, *question.options])
        case _:
            return _json(question, why="It can be seen.")


def _fault(scene: Scene, question: Question, aim: str) -> str:
    if aim not in ("sound", "wrong key"):
        return aim
    right = question.options[question.answer]
    if true_answer(scene, question) != right:
        return "wrong key" if aim == "wrong key" else "misseen"
    return "prior" if odds(question.text, question.options, right) > 1 / len(question.options) else ""


# ---- questions: judges


class Writer(FunctionJudge):
    """Writes what `write` says; it errs as `sight` does that is the same model."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            lambda request: Reply(texts=tuple(each.text for each in write(seen(request.images[0]), **settings))),
            tasks=[Task.INQUIRE],
            images=True,
            name="scripted writer",
        )


class Sight(FunctionJudge):
    """Looks: right but for `error` of the draws, when it takes any other option, and for what it always sees wrong.

    Args:
        who: the model; "model" is the writer.
        misseen: share of the features of things that it sees wrong each time, and `who` alike.
    """

    def __init__(self, error: float, *, who: str = "model", misseen: float = 0.03, seed: int = 0) -> None:
        super().__init__(self._look, tasks=[Task.LOOK], images=True, name=f"scripted sight, {who}, {error}")
        self.error, self.who, self.misseen, self.seed = error, who, misseen, seed

    def _look(self, request: Request) -> Reply:
        scene = seen(request.images[0])
        chance = drawn("look", self.seed, self.who, scene.model_dump_json(), *_parts(request))
        mine = caption(perceived(scene, self.who, self.misseen))
        answers = sorted(told(mine, request.question, frozenset(request.options)))
        chosen = answers[0] if len(answers) == 1 else guess(request.question, request.options, chance)
        if chance.random() < self.error:
            chosen = chance.choice([option for option in request.options if option != chosen])
        return _picked(request, chosen)


class Blind(FunctionJudge):
    """Guesses, by `guess`.

    Args:
        first: with this probability it takes the first option.
        sticks: it takes the same option of a question in each draw, as a model does that is sure of what it does not know.
    """

    def __init__(self, *, first: float = 0.0, sticks: bool = False, seed: int = 0) -> None:
        super().__init__(self._choose, tasks=[Task.CHOOSE], name=f"scripted guesser, {first}, {sticks}")
        self.first, self.sticks, self.seed = first, sticks, seed

    def _choose(self, request: Request) -> Reply:
        if self.sticks:
            options = sorted(request.options)
            chance = drawn("blind", self.seed, request.question, options)
            return _picked(request, guess(request.question, options, chance))
        chance = drawn("blind", self.seed, *_parts(request))
        return _picked(request, guess(request.question, request.options, chance, self.first))


class Reader(FunctionJudge):
    """Answers what the caption tells, and guesses like `Blind` at what it does not."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__(self._choose, tasks=[Task.CHOOSE], name="scripted reader")
        self.seed = seed

    def _choose(self, request: Request) -> Reply:
        answers = told(request.context, request.question, frozenset(request.options))
        if len(answers) == 1:
            return _picked(request, next(iter(answers)))
        chance = drawn("read", self.seed, request.context, *_parts(request))
        return _picked(request, guess(request.question, request.options, chance))


def _parts(request: Request) -> tuple[object, ...]:
    return request.question, request.options, request.sampling.seed


def _picked(request: Request, option: str) -> Reply:
    return Reply(tuple(float(each == option) for each in request.options))


# ---- rubrics: the student's mistakes

SEVERITY = {Kind.THING: "critical", Kind.PLACE: "important", Kind.COUNT: "important", Kind.SIZE: "minor"}
"""Of a mistake, by what it is about."""
MISTAKES = {"dropped": 0.12, "colour": 0.12, "place": 0.15, "size": 0.15}
"""Each thing's chance of each; one a thing."""
MISCOUNT, ADDED = 0.25, 0.15
"""Each caption's chance of a wrong count, and of a thing that is not there."""


@dataclass(frozen=True, slots=True)
class Planted:
    """A mistake of the student's."""

    fault: str
    """A key of `MISTAKES`, `count` or `added`."""
    claim: Claim | None
    """The true claim that the caption does not make for it; None if it lacks none."""
    follow: tuple[Claim, ...]
    """What it does not say either, for the same mistake."""
    severity: str
    told: Thing | str | None
    """What is said instead."""
    thing: Thing | None
    """Of whom."""


def plant(scene: Scene, seed: int = 0) -> list[Planted]:
    """The mistakes that the student makes about a scene; none, in some."""
    chance = drawn("student", seed, scene.model_dump_json())
    names, cells = ({getattr(thing, what) for thing in scene.things} for what in ("name", "cell"))
    made = []
    for thing in scene.things:
        fault = chance.choices([*MISTAKES, ""], [*MISTAKES.values(), 1 - sum(MISTAKES.values())])[0]
        exists, size, place = (
            Claim(Kind.THING, thing.name),
            Claim(Kind.SIZE, thing.name, thing.size),
            Claim(Kind.PLACE, thing.name, thing.cell),
        )
        if fault == "dropped":
            made.append(Planted(fault, exists, (size, place), "critical", None, thing))
        elif fault == "colour":
            free = [colour for colour in COLOURS if f"{colour} {thing.shape}" not in names]
            other = thing.model_copy(update={"colour": chance.choice(free)})
            names.add(other.name)
            made.append(Planted(fault, exists, (size, place), "critical", other, thing))
        elif fault == "place":
            cell = chance.choice([cell for cell in CELLS if cell not in cells])
            cells.add(cell)
            made.append(Planted(fault, place, (), "important", thing.model_copy(update={"cell": cell}), thing))
        elif fault == "size":
            other = thing.model_copy(update={"size": next(each for each in SIZES if each != thing.size)})
            made.append(Planted(fault, size, (), "minor", other, thing))
    if chance.random() < MISCOUNT:
        right = COUNTS[len(scene.things) - 2]
        wrong = chance.choice([count for count in COUNTS if count != right])
        made.append(Planted("count", Claim(Kind.COUNT, value=right), (), "important", wrong, None))
    if chance.random() < ADDED:
        free_names = [(c, s) for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
        colour, shape = chance.choice(free_names)
        cell = chance.choice([cell for cell in CELLS if cell not in cells])
        made.append(
            Planted("added", None, (), "critical", Thing(colour=colour, shape=shape, size="small", cell=cell), None)
        )
    return made


def tell(scene: Scene, mistakes: Iterable[Planted] = ()) -> str:
    """A complete caption, but for these mistakes."""
    mistakes = list(mistakes)
    count = next((each.told for each in mistakes if each.fault == "count"), COUNTS[len(scene.things) - 2])
    instead = {each.thing: each.told for each in mistakes if each.thing is not None}
    things = [instead.get(thing, thing) for thing in scene.things]
    things += [each.told for each in mistakes if each.fault == "added"]
    return " ".join([f"There are {count} things.", *(sentence_of(each) for each in things if isinstance(each, Thing))])


# ---- rubrics: teachers, writer, judge


def teach(scene: Scene, who: str, error: float, *, omits: float = 0.1, seed: int = 0) -> str:
    """A teacher's caption: each thing, size, place and the count left out with probability `omits`, or wrong with `error`."""
    chance = drawn("teacher", who, seed, scene.model_dump_json())

    def feature(values: Sequence[Any], value: Any) -> Any:
        # chance is drawn from alike whatever the rate, so that a higher rate adds errors to those of a lower one
        other = chance.choice([each for each in values if each != value])
        return other if chance.random() < error else value

    lines = []
    right = COUNTS[len(scene.things) - 2]
    count, says = feature(COUNTS, right), chance.random() >= omits
    if says:
        lines.append(f"There are {count} things.")
    for thing in scene.things:
        mine = Thing(
            colour=feature(COLOURS, thing.colour),
            shape=thing.shape,
            size=feature(SIZES, thing.size),
            cell=feature(CELLS, thing.cell),
        )
        says, size, place = (chance.random() >= omits for _ in range(3))
        if says:
            lines.append(sentence_of(mine, size=size, place=place))
    return " ".join(lines) or "There is nothing to be said."


class Teacher(FunctionJudge):
    """Describes by `teach`; teachers with the same `eyes` write the same."""

    def __init__(self, name: str, error: float, *, eyes: str | None = None, seed: int = 0) -> None:
        super().__init__(
            lambda request: Reply(texts=(teach(seen(request.images[0]), eyes or name, error, seed=seed),)),
            tasks=[Task.DESCRIBE],
            images=True,
            name=name,
        )


class Critic(FunctionJudge):
    """Writes a criterion for what a teacher says and the student does not, sees no picture, and errs at known rates.

    Args:
        notices: share of such statements that it writes a criterion for.
        unneeded: share of the statements that the student makes too, for which it writes one all the same.
        misweighs: share of the criteria with another severity than `SEVERITY`.
        repeats: share that it writes twice, the second time in capitals, as minor.
        spoils: share that is malformed.
    """

    def __init__(
        self,
        *,
        notices: float = 0.95,
        unneeded: float = 0.1,
        misweighs: float = 0.1,
        repeats: float = 0.05,
        spoils: float = 0.03,
        seed: int = 0,
    ) -> None:
        super().__init__(self._criticise, tasks=[Task.CRITICISE], name="scripted critic")
        self.notices, self.unneeded, self.misweighs = notices, unneeded, misweighs
        self.repeats, self.spoils, self.seed = repeats, spoils, seed

    def _criticise(self, request: Request) -> Reply:
        chance = drawn("critic", self.seed, request.context, *request.options)
        by_teacher = [claims(text) for text in request.options]
        student = said(request.context)
        texts = []
        for claim in dict.fromkeys(claim for theirs in by_teacher for claim in theirs if claim.kind in SEVERITY):
            writes = chance.random() < (self.unneeded if claim in student else self.notices)
            severity, others = SEVERITY[claim.kind], [each for each in WEIGHTS if each != SEVERITY[claim.kind]]
            other = chance.choice(others)
            if chance.random() < self.misweighs:
                severity = other
            spoilt, repeated = chance.random() < self.spoils, chance.random() < self.repeats
            if not writes:
                continue
            teachers = [number for number, theirs in enumerate(by_teacher, 1) if claim in theirs]
            entry = {"criterion": f"{claim.text}.", "severity": "grave" if spoilt else severity, "teachers": teachers}
            texts.append(json.dumps(entry))
            if repeated:
                texts.append(json.dumps(entry | {"criterion": claim.text.upper(), "severity": "minor"}))
        return Reply(texts=tuple(texts))


class Flipping(ShapesJudge):
    """The exact judge, but for `flips` of its verdicts on whether a text says a statement; the same pair gets the same."""

    def __init__(self, flips: float, seed: int = 0) -> None:
        super().__init__()
        self.flips, self.seed, self.name = flips, seed, f"shapes-flipping-{flips}"

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request."""
        return [self._flipped(*pair) for pair in zip(requests, await super().ask(requests), strict=True)]

    def _flipped(self, request: Request, reply: Reply | Missing) -> Reply | Missing:
        if request.task is not Task.SUPPORT or isinstance(reply, Missing) or not self.flips:
            return reply
        values = zip(request.options, reply.values, strict=True)
        return replace(
            reply,
            values=tuple(
                1 - value if drawn("flip", self.seed, request.context, option).random() < self.flips else value
                for option, value in values
            ),
        )
