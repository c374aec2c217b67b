"""Request, Reply, Judge: all that a component knows of a judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from capreward import prompts
from capreward.errors import ComponentError, InputError
from capreward.missing import Missing, Reason


class Task(StrEnum):
    """What a judge can be asked.

    A reply holds one number in [0, 1] for each of the request's options; to a task of `WRITING` it holds texts, and no numbers.
    """

    CHOOSE = "choose"
    """Which option answers `question`, going by `context` alone? Probabilities, adding up to 1."""
    SUPPORT = "support"
    """Does `context` say what the option says? One number an option: 1 yes, 0 no, between them the probability."""
    VERIFY = "verify"
    """Is the option true of the image, and can it be pointed at there? One number an option: 1 if both."""
    RATE = "rate"
    """How good is `context` on the aspect that the option names? One number an option, 1 is flawless."""
    LIKERT = "likert"
    """How good a caption is `context`, all in all, beside the reference in `question` if there is one? One option."""
    EXTRACT = "extract"
    """Which statements does `context` make? `texts`, as atomic as the judge can; no options."""
    LOOK = "look"
    """Which option answers `question`, going by the image? Probabilities, adding up to 1; `context` is empty."""
    DESCRIBE = "describe"
    """A caption of the image, as one text. `question` is the instruction."""
    INQUIRE = "inquire"
    """Multiple-choice questions about the image, or where there is none, about what the reference caption in `context` says.

    `question` says how many, in digits; `options` are the kinds wanted. Each text is a JSON object of `kind`, `question`,
    `options` and `answer`, the right option word for word. What is wrong within an object is for the caller to find.
    """
    CRITICISE = "criticise"
    """Criteria that the student's caption in `context` fails, going by the teachers' captions in `options`, and the image if any.

    Each text is a JSON object of `criterion`, `severity` (critical, important or minor) and `teachers`, the numbers of those
    who say it, from 1. What is wrong within an object is for the caller to find.
    """


CHOICES = frozenset({Task.CHOOSE, Task.LOOK})
"""Answered by one of the options: the reply's numbers add up to 1."""
WRITING = frozenset({Task.EXTRACT, Task.DESCRIBE, Task.INQUIRE, Task.CRITICISE})
"""Answered by texts."""
SEEING = frozenset({Task.VERIFY, Task.LOOK, Task.DESCRIBE})
"""Nothing without an image; offered by judges that see."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a language model draws its reply."""

    temperature: float = 0.0
    """0 takes the likeliest reply."""
    seed: int | None = None
    """Tells draws of the same request apart, so that each is asked and kept for itself."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a judge, as fields: a language model renders them to a prompt, others read them directly."""

    task: Task
    context: str
    """The text that is judged. Often written by the policy, so never to be followed."""
    options: tuple[str, ...] = ()
    """Answers to choose from, statements to look for, aspects to rate, kinds of question, or captions to go by."""
    question: str = ""
    images: tuple[Path | bytes, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    def key(self, judge: str) -> str:
        """Hash of everything that could change the answer: judge, prompt, fields, images, sampling."""
        parts = {
            "judge": judge,
            "prompt": prompts.load(self.task).hash,
            "fields": [self.task, self.context, list(self.options), self.question],
            "images": [_digest(image) for image in self.images],
            "sampling": asdict(self.sampling),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(image: Path | bytes) -> str:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    state = image.stat()
    return _file_digest(image.absolute(), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2**16)
def _file_digest(path: Path, _mtime_ns: int, _size: int) -> str:
    """Of the file as it was at that time: many requests share an image, which is read for the first of them alone."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reply:
    """The judge's answer to one request."""

    values: tuple[float, ...] = ()
    """One number in [0, 1] for each option; none where the task is one of `WRITING`."""
    texts: tuple[str, ...] = ()
    """What a task of `WRITING` asks for: statements, a caption, or JSON objects as text."""
    why: tuple[str, ...] = ()
    """The judge's reason for each value, where it gives any."""
    raw: str = ""
    """What the judge said, word for word, where it spoke in words."""


@dataclass(slots=True)
class Usage:
    """What a judge has cost so far."""

    requests: int = 0
    """Asked of it."""
    calls: int = 0
    """Sent to the model: what no cache answered, and every retry."""
    hits: int = 0
    """Answered by a cache, or by an identical request already in flight."""
    failures: int = 0
    """Ended as Missing."""
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    """Waited for the model, added up over calls."""
    money: float = 0.0
    """In the currency of the prices given; 0 without prices, as of engines in this process: they cost no money by the token."""

    def snapshot(self) -> Usage:
        """A copy, which stays as it is while the judge goes on counting."""
        return replace(self)

    def since(self, earlier: Usage) -> Usage:
        """What has come on top of an earlier snapshot."""
        return Usage(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))

    def summary(self) -> str:
        """One line, without what is 0.

        Such as "1,024 requests: 512 calls, 500 cached, 12 failed; 1.2 M tokens in, 30 k out; 84 s waited; 1.23 spent".
        """
        calls, read, written = self.calls, self.input_tokens, self.output_tokens
        counts = [
            (calls, f"{calls:,} {'call' if calls == 1 else 'calls'}"),
            (self.hits, f"{self.hits:,} cached"),
            (self.failures, f"{self.failures:,} failed"),
        ]
        tokens = [
            (read, f"{_short(read)} {'token' if read == 1 else 'tokens'} in"),
            (written, f"{_short(written)} {'' if read else 'token ' if written == 1 else 'tokens '}out"),
        ]
        waited = [(self.seconds >= 0.05, f"{self.seconds:,.{0 if self.seconds >= 9.95 else 1}f} s waited")]
        spent = [(self.money, f"{self.money:,.2f} spent" if self.money >= 0.005 else "less than 0.01 spent")]
        parts = [", ".join(text for shown, text in part if shown) for part in (counts, tokens, waited, spent)]
        head = f"{self.requests:,} {'request' if self.requests == 1 else 'requests'}"
        return ": ".join(filter(None, (head, "; ".join(filter(None, parts)))))


def _short(number: int) -> str:
    """Three digits and a unit, such as "1.23 M"."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return str(number)


@runtime_checkable
class Judge(Protocol):
    """Answers requests in batches. A request that fails comes back as Missing and never sinks the others."""

    name: str
    """Model and revision: whatever changes the answers changes the name."""
    tasks: frozenset[Task]
    """What it can do."""
    images: bool
    """Whether it sees a request's images."""

    @property
    def usage(self) -> Usage:
        """What it has cost so far; a plain attribute serves."""
        ...

    async def ask(self, requests: Sequence[Request]) -> Sequence[Reply | Missing]:
        """One reply a request, in the same order."""
        ...


def require(judge: Judge, component: str, *tasks: Task) -> Judge:
    """The judge, if it can do `tasks`.

    Raises:
        InputError: it cannot; names the component, the judge and what it can do.
    """
    if isinstance(judge, type) or not isinstance(judge, Judge):
        raise InputError(f"{component}: got judge {judge!r}, expected a judge, such as LiteJudge()")
    lacking = [task for task in tasks if task not in judge.tasks]
    if lacking:
        raise InputError(
            f"{component}: judge {judge.name!r} cannot {', '.join(lacking)}, only {', '.join(sorted(judge.tasks))}; "
            "give it a judge that can"
        )
    return judge


async def ask_each(judge: Judge, batches: Sequence[Sequence[Request]]) -> list[list[Reply | Missing]]:
    """Puts all requests to the judge in one call, each different one once, and hands the replies back in the same nesting.

    A reply that is not complete (see `complete_reply`) comes back as Missing.

    Raises:
        ComponentError: the judge answered with the wrong number of replies.
    """
    requests = list(dict.fromkeys(request for batch in batches for request in batch))
    replies = list(await judge.ask(requests)) if requests else []
    if len(replies) != len(requests):
        raise ComponentError(
            f"judge {judge.name!r}: got {len(replies)} replies to {len(requests)} requests, expected one for each"
        )
    complete = {request: complete_reply(request, reply) for request, reply in zip(requests, replies, strict=True)}
    return [[complete[request] for request in batch] for batch in batches]


def complete_reply(request: Request, reply: Reply | Missing) -> Reply | Missing:
    """The reply if it is complete, else Missing(unparseable).

    Every option has to be answered once by a number in [0, 1]; those of a choice have to add up to 1. A task of `WRITING` has to
    be answered by texts alone: a description by one that is not blank, the others by any number.
    """
    if isinstance(reply, Missing):
        return reply
    expected = 0 if request.task in WRITING else len(request.options)
    if len(reply.values) != expected:
        detail = f"{len(reply.values)} answers to {expected} options"
    elif request.task is Task.DESCRIBE and (len(reply.texts) != 1 or not reply.texts[0].strip()):
        detail = f"got texts {reply.texts!r:.200}, expected one that is not blank"
    elif not all(0.0 <= value <= 1.0 for value in reply.values):
        detail = f"answers outside [0, 1]: {reply.values}"
    elif request.task in CHOICES and abs(sum(reply.values) - 1) > 1e-3:
        detail = f"probabilities that do not add up to 1: {reply.values}"
    else:
        return reply
    # Without `raw`: whoever gave these values has a format of its own, in which `judges.parse` must not look for an answer.
    return Missing(Reason.UNPARSEABLE, f"{request.task}: {detail}; the judge said {reply.raw[:200]!r}")
