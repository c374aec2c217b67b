"""Questions: written by a model, kept where they can be answered with the image and not without it."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from capreward.curate.stage import Curated, Outcome
from capreward.curate.writing import clean, distinct, fold, prompt_hashes, read
from capreward.errors import ComponentError, InputError, MissingExtraError
from capreward.groups import Float
from capreward.judges.base import Judge, Reply, Request, Sampling, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Item, Question, words

if TYPE_CHECKING:
    from capreward.judges.lite import LiteJudge

FIELDS = ("kind", "question", "options", "answer")
KINDS = ("object", "attribute", "count", "position", "relation", "text", "chart")
FREE_RULES = ("malformed", "leaking", "duplicate")
"""Those that need no judge; a candidate that falls to one of them is not put to the judges."""
RULES = (*FREE_RULES, "unseen", "guessed")
MOST_OPTIONS = 26
"""As many as there are letters to answer with."""
LONGER = 1.5
LONGER_BY = 4
"""A right option gives itself away with more than `LONGER` times the words of the next longest, and `LONGER_BY` more."""

Embed = Callable[[Sequence[str]], NDArray[Any]]
Verdict = dict[str, Any]
"""`rejected` (None where the rule could not be tried), the numbers that it goes by, and `why`."""


class Questions:
    """Writes multiple-choice questions about each item's image, and keeps those that only who sees it can answer.

    Every candidate is held against every rule: `malformed`, `leaking`, `duplicate`, `unseen`, `guessed` (the functions of
    these names say how). Only the judges are spared candidates that a rule without a judge has rejected. The last two are
    CapRL's filter (arXiv 2509.22647): answered right with the image, and wrong without it.

    The right option stands at each place equally often: over a candidate's draws, where these are a multiple of its options,
    and over an item's kept questions.
    Draws depend on the seed, the item's id and the question alone, so an item comes out the same whatever stands beside it.

    Args:
        writer: writes from the image if it sees images and the item has one, else from the item's references.
        sight: answers from the image if it sees images and the item has one, else from the item's references.
        blind: answers from nothing; it should be no weaker than the judge that the reward will ask. The lite judge cannot: it
            compares texts, and has none to compare the options with.
        count: questions asked for; a writer may write more or fewer.
        kinds: asked for. A question of another kind is noted (`unknown_kind`), and kept.
        draws: times that each question is put to `sight` and to `blind`, with the options in another order each time.
        seen_at_least: share of draws that `sight` has to answer right.
        guessed_at_most: share of draws that `blind` may answer right. A judge that always takes the same place is right in
            1/n of them for n options, so 0.25 leaves next to no questions with two options.
        alike: cosine from which two questions of an item count as one; None compares their texts alone.
        embed: texts -> one vector each, [N, D]; the lite judge's embeddings when left out.
        temperature: of the judges' answers. At 0 a draw differs from the next in the order of options alone.
        keep_existing: the item's own questions are candidates too, ahead of the written ones, with their words as they are;
            else those that are written take their place.
        seed: of draws, places and sampled replies.

    Missing: the item has neither image nor references (`no_image`), or not the one that the writer or `sight` needs
    (`no_reference`, `no_image`); the writer failed; or no question is kept and a judge failed at a candidate, whatever rule
    that fell to besides.
    A candidate at which a judge failed, or at which `blind` tied in every draw (`refused`), is set aside as `missing`: not
    kept, and not held to be rejected by any rule.

    Raises:
        InputError: a setting out of range, a judge that cannot do its part, or a lite judge as `blind`.
    """

    name = "questions"

    def __init__(
        self,
        writer: Judge,
        sight: Judge,
        blind: Judge,
        *,
        count: int = 10,
        kinds: Sequence[str] = KINDS,
        draws: int = 4,
        seen_at_least: float = 1.0,
        guessed_at_most: float = 0.25,
        alike: float | None = 0.9,
        embed: Embed | None = None,
        temperature: float = 0.0,
        keep_existing: bool = False,
        seed: int = 0,
    ) -> None:
        for name, number in {"count": count, "draws": draws}.items():
            if number < 1:
                raise InputError(f"Questions: got {name}={number}, expected a number >= 1")
        for name, share in {"seen_at_least": seen_at_least, "guessed_at_most": guessed_at_most}.items():
            if not 0 <= share <= 1:
                raise InputError(f"Questions: got {name}={share}, expected a share in [0, 1]")
        if alike is not None and not 0 < alike <= 1:
            raise InputError(
                f"Questions: got alike={alike}, expected a cosine in (0, 1], or None to compare texts alone"
            )
        if not temperature >= 0:
            raise InputError(f"Questions: got temperature={temperature}, expected a number >= 0")
        if isinstance(kinds, str) or not kinds:
            raise InputError(f"Questions: got kinds={kinds!r}, expected a list such as {list(KINDS)}")
        self.writer = require(writer, "Questions", Task.INQUIRE)
        self.sight = require(sight, "Questions", Task.LOOK if sight.images else Task.CHOOSE)
        self.blind = require(blind, "Questions", Task.CHOOSE)
        if blind.name.startswith("lite"):
            raise InputError(
                f"Questions: judge {blind.name!r} cannot be `blind`: it compares options with a text, and without one all "
                "tie; give a language model, such as openai:MODEL or local:MODEL"
            )
        self.number, self.kinds, self.draws = count, tuple(kinds), draws
        self.seen_at_least, self.guessed_at_most = seen_at_least, guessed_at_most
        self.alike, self.embed, self.temperature = alike, embed or minilm, temperature
        self.keep_existing, self.seed = keep_existing, seed

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Writer, sight and blind."""
        return distinct((self.writer, self.sight, self.blind))

    def describe(self) -> dict[str, Any]:
        """Settings, judges and prompts; `written_from` and `seen_in` say what the judges have, where an item has it."""
        return {
            "writer": self.writer.name,
            "sight": self.sight.name,
            "blind": self.blind.name,
            "written_from": _source(self.writer),
            "seen_in": _source(self.sight),
            "count": self.number,
            "kinds": list(self.kinds),
            "draws": self.draws,
            "seen_at_least": self.seen_at_least,
            "guessed_at_most": self.guessed_at_most,
            "alike": self.alike,
            "embed": None if self.alike is None else getattr(self.embed, "__qualname__", type(self.embed).__qualname__),
            "temperature": self.temperature,
            "keep_existing": self.keep_existing,
            "seed": self.seed,
            "prompts": prompt_hashes(Task.INQUIRE, Task.CHOOSE, *([Task.LOOK] if self.sight.images else [])),
        }

    async def curate(self, items: Sequence[Item]) -> list[Outcome]:
        """Items with `questions`; records: each candidate with what every rule says of it.

        Raises:
            MissingExtraError: questions are to be compared by the lite judge's embeddings, and the extra `lite` is missing.
            ComponentError: `embed` does not give one finite vector for each text.
        """
        if self.alike is not None and self.embed is minilm:
            _lite()  # before anything is paid for
        lacking = [self._lacks(item) for item in items]
        replies = await ask_each(
            self.writer,
            [[self._inquiry(item)] * (lack is None) for item, lack in zip(items, lacking, strict=True)],
        )
        written = [lack or answers[0] for lack, answers in zip(lacking, replies, strict=True)]
        candidates = [
            self._candidates(item, reply.texts) if isinstance(reply, Reply) else []
            for item, reply in zip(items, written, strict=True)
        ]
        await self._compare(candidates)
        asked = [
            [self._draw(item, candidate) for candidate in theirs]
            for item, theirs in zip(items, candidates, strict=True)
        ]
        looks = [[self._looks(item, asks) for asks in row] for item, row in zip(items, asked, strict=True)]
        blind = [[[ask.choose() for ask in asks] for asks in row] for row in asked]
        seen, unaided = await asyncio.gather(_answers(self.sight, looks), _answers(self.blind, blind))
        for rows in zip(candidates, asked, seen, unaided, strict=True):
            for row in zip(*rows, strict=True):
                self._judge(*row)
        return [self._outcome(*row) for row in zip(items, written, candidates, strict=True)]

    def count(self, record: Mapping[str, Any]) -> dict[str, int]:
        """What became of the candidates: `written` and `existing` ones are `kept`, `rejected` or `missing`.

        A rejected one counts under every rule that it fell to, and under `first_RULE` of the first. `empty`: none was kept.
        """
        names = ("written", "existing", "kept", "rejected", "missing", "unknown_kind")
        counts = Counter(dict.fromkeys((*names, *RULES, *(f"first_{rule}" for rule in RULES)), 0))
        for candidate in record["candidates"]:
            fallen = [rule for rule in RULES if candidate["rules"][rule]["rejected"]]
            counts.update((candidate["source"], candidate["verdict"]))
            counts["unknown_kind"] += candidate["unknown_kind"]
            if candidate["verdict"] == "rejected":
                counts.update((*fallen, f"first_{fallen[0]}"))
        return {**counts, "empty": int(not counts["kept"])}

    def _lacks(self, item: Item) -> Missing | None:
        """What the item has to have, and has not; then nothing is asked about it."""
        if item.image is None and not item.references:
            return Missing(Reason.NO_IMAGE, f"item {item.id!r} has neither an image nor references")
        if item.references:
            if item.image is None and Task.CHOOSE not in self.sight.tasks:
                return Missing(
                    Reason.NO_IMAGE, f"item {item.id!r} has no image for judge {self.sight.name!r} to look at"
                )
            return None
        for judge in (self.writer, self.sight):
            if not judge.images:
                why = f"item {item.id!r} has no references, and judge {judge.name!r} sees no image"
                return Missing(Reason.NO_REFERENCE, why)
        return None

    def _inquiry(self, item: Item) -> Request:
        image = item.image if self.writer.images else None
        context, images = ("\n".join(item.references), ()) if image is None else ("", (image,))
        return Request(Task.INQUIRE, context, self.kinds, str(self.number), images)

    def _candidates(self, item: Item, texts: Sequence[str]) -> list[_Candidate]:
        old = [_Candidate.existing(question) for question in item.questions] if self.keep_existing else []
        return old + [_Candidate.written(text, item.references) for text in texts]

    async def _compare(self, candidates: Sequence[Sequence[_Candidate]]) -> None:
        """Holds the well-formed candidates against `leaking` and, each against those before it, `duplicate`."""
        formed = [[(c, c.question) for c in theirs if c.question is not None] for theirs in candidates]
        vectors: dict[str, Float] = {}
        texts = list(dict.fromkeys(_gist(question) for theirs in formed for _, question in theirs))
        if self.alike is not None and texts:
            vectors = dict(zip(texts, _unit(await asyncio.to_thread(self.embed, texts), len(texts)), strict=True))
        for theirs in formed:
            earlier: list[Question] = []
            for candidate, question in theirs:
                candidate.rules["leaking"] = leaking(question)
                cosines = None
                if vectors:  # rounded, since a model's last digits depend on what else is in its batch
                    own = vectors[_gist(question)]
                    cosines = [round(float(own @ vectors[_gist(other)]), 4) for other in earlier]
                candidate.rules["duplicate"] = duplicate(question, earlier, cosines, self.alike)
                if not candidate.fallen:
                    earlier.append(question)

    def _draw(self, item: Item, candidate: _Candidate) -> list[_Ask]:
        """The question as it is put to the judges: nothing if a rule has already rejected it."""
        question = candidate.question
        if question is None or candidate.fallen:
            return []
        start = _start(self.seed, item.id, question.text)
        return [
            _Ask(
                rotated(question, start + number),
                Sampling(self.temperature, self.seed + number if self.temperature else None),
            )
            for number in range(self.draws)
        ]

    def _looks(self, item: Item, asks: Sequence[_Ask]) -> list[Request]:
        image = item.image if self.sight.images else None
        return [ask.choose("\n".join(item.references)) if image is None else ask.look(image) for ask in asks]

    def _judge(
        self,
        candidate: _Candidate,
        asks: Sequence[_Ask],
        seen: Sequence[Reply | Missing],
        unaided: Sequence[Reply | Missing],
    ) -> None:
        if not asks:
            return
        for rule, replies, limit in ((unseen, seen, self.seen_at_least), (guessed, unaided, self.guessed_at_most)):
            answered = [reply for reply in replies if isinstance(reply, Reply)]
            failed = [reply for reply in replies if isinstance(reply, Missing)]
            if rule is guessed and not failed and all(map(_tied, answered)):
                why = f"judge {self.blind.name!r} tied in all {len(asks)} draws, so whether it can guess is not known"
                failed = [Missing(Reason.REFUSED, why)]
            if failed:
                candidate.missing = candidate.missing or failed[0]
                verdict = _untried(clean(f"{failed[0].reason}: {failed[0].detail}"))
            else:
                right = sum(ask.right(reply) for ask, reply in zip(asks, answered, strict=True))
                verdict = rule(right, len(asks), limit)
            candidate.rules[rule.__name__] = verdict

    def _outcome(self, item: Item, written: Reply | Missing, candidates: Sequence[_Candidate]) -> Outcome:
        if isinstance(written, Missing):
            return written
        kept = [c.question for c in candidates if c.verdict == "kept" and c.question is not None]
        missing = [c.missing for c in candidates if c.missing is not None]
        if missing and not kept:
            return missing[0]  # an outage must not read as "nothing worth asking"
        start = _start(self.seed, item.id)
        questions = tuple(rotated(question, start + number) for number, question in enumerate(kept))
        record = {
            "written_from": _source(self.writer, item),
            "seen_in": _source(self.sight, item),
            "candidates": [candidate.record(self.kinds) for candidate in candidates],
        }
        return Curated(item.model_copy(update={"questions": questions}), record)


def malformed(entry: Mapping[str, Any]) -> str:
    """What is wrong with a question's fields, "" if nothing.

    All but the options are texts, the options 2 to 26 texts that differ in more than case, spaces and final punctuation, and the
    answer is one of them.
    """
    options = entry["options"]
    if not isinstance(options, list):
        return "options: expected a list"
    if not all(isinstance(text, str) for text in (entry["kind"], entry["question"], entry["answer"], *options)):
        return "expected texts"
    if not all(map(clean, (entry["question"], *options))):
        return "an empty text"
    if not 2 <= len(options) <= MOST_OPTIONS:
        return f"{len(options)} options, expected 2 to {MOST_OPTIONS}"
    folded = [fold(clean(option)) for option in options]
    if len(set(folded)) < len(folded):
        return "two options are the same"
    if fold(clean(entry["answer"])) not in folded:
        return "the answer is not among the options"
    return ""


def leaking(question: Question) -> Verdict:
    """Whether the wording gives the right option away, so that it tells nothing of who answers it.

    An option about the other options ("all of the above", "both A and B"); a right option that is by far the longest (over
    1.5 times the words of the next longest, and 4 more at least); or a question that contains the words of the right option,
    articles aside, and those of no other option.
    """
    right, *others = rotated(question, 0).options
    longest, next_longest = len(words(right)), max(len(words(option)) for option in others)
    asked = set(words(question.text.casefold()))
    given = [option for option in question.options if (content := _content(option)) and content <= asked]
    whys = []
    if about := [option for option in question.options if _ABOUT_OPTIONS.search(option)]:
        whys.append(f"{about[0]!r} is about the other options")
    if longest > LONGER * next_longest and longest - next_longest >= LONGER_BY:
        whys.append("the right option is by far the longest")
    if given == [right]:
        whys.append("the question contains the right option")
    return {
        "rejected": bool(whys),
        "words_of_right": longest,
        "words_of_next": next_longest,
        **({"why": "; ".join(whys)} if whys else {}),
    }


def duplicate(
    question: Question, earlier: Sequence[Question], cosines: Sequence[float] | None = None, alike: float | None = None
) -> Verdict:
    """Whether one of the item's earlier questions asks the same: in the same words, or likeness >= `alike`.

    Args:
        earlier: those that no rule without a judge has rejected.
        cosines: of the embeddings of "question, right option" to those of `earlier`; None if texts alone are compared.
    """
    same = [other for other in earlier if _asked(other) == _asked(question)]
    nearest = max(cosines, default=None) if cosines is not None else None
    if not same and nearest is not None and cosines is not None and alike is not None and nearest >= alike:
        same = [earlier[list(cosines).index(nearest)]]
    return {"rejected": bool(same), "cosine": nearest, **({"why": f"as {same[0].text!r}"} if same else {})}


def unseen(right: int, draws: int, seen_at_least: float) -> Verdict:
    """Whether it is answered right with the image in too few draws: wrong, or not to be seen (CapRL, arXiv 2509.22647)."""
    return {"rejected": right / draws < seen_at_least, "right": right, "draws": draws}


def guessed(right: int, draws: int, guessed_at_most: float) -> Verdict:
    """Whether it is answered right without the image in too many draws (CapRL, arXiv 2509.22647)."""
    return {"rejected": right / draws > guessed_at_most, "right": right, "draws": draws}


def hard(options: Sequence[str], right: str, references: Sequence[str]) -> bool:
    """Whether a wrong option stands in one of the references, word for word; False without references."""
    texts = [f" {' '.join(words(text.casefold()))} " for text in references]
    wrong = [f" {' '.join(words(option.casefold()))} " for option in options if option != right]
    return any(option.strip() and option in text for option in wrong for text in texts)


def rotated(question: Question, place: int) -> Question:
    """The question with its options rotated until the right one stands at `place` (mod their number)."""
    count = len(question.options)
    right = place % count
    options = tuple(question.options[(question.answer - right + i) % count] for i in range(count))
    return question.model_copy(update={"options": options, "answer": right})


def minilm(texts: Sequence[str]) -> NDArray[Any]:
    """The lite judge's embeddings (all-MiniLM-L6-v2), [N, 384].

    Raises:
        MissingExtraError: the extra `lite` is not installed.
    """
    return _lite().embed(texts)


_ABOUT_OPTIONS = re.compile(
    r"\b(all|none|any|both|neither|either|some|one) of the (above|below|options|choices|answers)\b"
    r"|\b(all|none|both) the above\b|^(all|none|both|neither) of (these|those)\W*$"
    r"|\b(both|either|neither) \(?[a-h1-8]\)?,? (and|or|nor) \(?[a-h1-8]\b",
    re.IGNORECASE,
)
_ARTICLES = frozenset({"a", "an", "the"})


@dataclass(slots=True)
class _Candidate:
    """A question on its way through the rules."""

    source: str
    """`written`, or `existing`: the item's own."""
    raw: str
    """As it was written."""
    question: Question | None
    """None if it is malformed."""
    rules: dict[str, Verdict] = field(default_factory=dict)
    missing: Missing | None = None
    """The first failure of a judge at it."""

    @classmethod
    def written(cls, text: str, references: Sequence[str]) -> _Candidate:
        entry = read(text, FIELDS)
        wrong = entry if isinstance(entry, str) else malformed(entry)
        if wrong or isinstance(entry, str):
            return cls("written", clean(text), None, {"malformed": {"rejected": True, "why": wrong}})
        options = tuple(map(clean, entry["options"]))
        answer = list(map(fold, options)).index(fold(clean(entry["answer"])))
        question = Question(
            text=clean(entry["question"]),
            options=options,
            answer=answer,
            kind=clean(entry["kind"]),
            hard=hard(options, options[answer], references),
        )
        return cls("written", clean(text), question, {"malformed": {"rejected": False}})

    @classmethod
    def existing(cls, question: Question) -> _Candidate:
        right = question.options[question.answer]
        wrong = malformed({"kind": "", "question": question.text, "options": [*question.options], "answer": right})
        if wrong:
            return cls("existing", question.model_dump_json(), None, {"malformed": {"rejected": True, "why": wrong}})
        return cls("existing", "", question, {"malformed": {"rejected": False}})

    @property
    def fallen(self) -> list[str]:
        """The rules that reject it, in their order."""
        return [rule for rule in RULES if self.rules.get(rule, {}).get("rejected")]

    @property
    def verdict(self) -> str:
        return "missing" if self.missing is not None else "rejected" if self.fallen else "kept"

    def record(self, kinds: Sequence[str]) -> dict[str, Any]:
        """JSON-ready."""
        untried, not_asked = _untried("malformed"), _untried("not asked")
        rules = {rule: self.rules.get(rule, untried if rule in FREE_RULES else not_asked) for rule in RULES}
        first = self.fallen[0] if self.verdict == "rejected" else None
        head = {"source": self.source, "verdict": self.verdict, "first": first, "rules": rules, "unknown_kind": False}
        if self.question is None:
            return {**head, "raw": self.raw}
        unknown = self.source == "written" and self.question.kind not in kinds
        return {**head, "unknown_kind": unknown, **self.question.model_dump(mode="json")}


@dataclass(frozen=True, slots=True)
class _Ask:
    """A question as it is put to a judge."""

    question: Question
    sampling: Sampling

    def choose(self, context: str = "") -> Request:
        return Request(Task.CHOOSE, context, self.question.options, self.question.text, sampling=self.sampling)

    def look(self, image: Path | bytes) -> Request:
        return Request(Task.LOOK, "", self.question.options, self.question.text, (image,), self.sampling)

    def right(self, reply: Reply) -> bool:
        """Whether the right option is the likeliest; a tie is no answer."""
        return not _tied(reply) and reply.values.index(max(reply.values)) == self.question.answer


async def _answers(judge: Judge, requests: Sequence[Sequence[Sequence[Request]]]) -> list[list[list[Reply | Missing]]]:
    """The replies in the nesting of the requests, all put in one call."""
    replies = iter(await ask_each(judge, [batch for row in requests for batch in row]))
    return [[next(replies) for _ in row] for row in requests]


def _tied(reply: Reply) -> bool:
    """Whether no option is likelier than all others."""
    return reply.values.count(max(reply.values)) > 1


def _unit(vectors: Any, count: int) -> list[Float]:
    """The vectors at length 1, those of length 0 left so."""
    found = np.asarray(vectors, np.float64)
    if found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
        raise ComponentError(f"Questions: embed gave shape {found.shape}, expected ({count}, D), finite")
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return list(found / np.where(lengths > 0, lengths, 1.0))


@cache
def _lite() -> LiteJudge:
    from capreward.judges.lite import LiteJudge

    try:
        return LiteJudge()
    except MissingExtraError as error:
        raise MissingExtraError(
            f"Questions compares questions by embeddings: {error}; or give embed=, or alike=None"
        ) from error


def _source(judge: Judge, item: Item | None = None) -> str:
    """What the judge goes by, for an item that has it all if none is given."""
    return "image" if judge.images and (item is None or item.image is not None) else "references"


def _start(*parts: object) -> int:
    """A place to start from that depends on these alone."""
    return random.Random(" ".join(map(str, parts))).getrandbits(32)


def _gist(question: Question) -> str:
    """Whose embedding two questions are compared by."""
    return f"{question.text} {question.options[question.answer]}"


def _asked(question: Question) -> tuple[str, list[str]]:
    return fold(question.text), sorted(map(fold, question.options))


def _content(option: str) -> set[str]:
    return set(words(option.casefold())) - _ARTICLES


def _untried(why: str) -> Verdict:
    return {"rejected": None, "why": why}
