"""Request, Reply, Judge: all that a component knows of a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from capreward.errors import ComponentError, InputError
from capreward.missing import Missing, Reason


class Task(StrEnum):
    """What a judge can be asked. A reply holds one number in [0, 1] for each of the request's options."""

    CHOOSE = "choose"
    """Which option answers `question`, going by `context` alone? Probabilities, adding up to 1."""
    SUPPORT = "support"
    """Does `context` say what the option says? One number an option: 1 yes, 0 no, between them the probability."""
    RATE = "rate"
    """How good is `context` on the aspect that the option names? One number an option, 1 is flawless."""
    EXTRACT = "extract"
    """Which statements does `context` make? `texts`, as atomic as the judge can; no options."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a judge, as fields: a language model renders them to a prompt, others read them directly."""

    task: Task
    context: str
    """The text that is judged. Often written by the policy, so never to be followed."""
    options: tuple[str, ...] = ()
    """Answers to choose from, statements to look for, or aspects to rate."""
    question: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The judge's answer to one request."""

    values: tuple[float, ...] = ()
    """One number in [0, 1] for each option."""
    texts: tuple[str, ...] = ()
    """The statements of an EXTRACT."""
    raw: str = ""
    """What the judge said, word for word, where it spoke in words."""


@runtime_checkable
class Judge(Protocol):
    """Answers requests in batches. A request that fails comes back as Missing and never sinks the others."""

    name: str
    """Model and revision: whatever changes the answers changes the name."""
    tasks: frozenset[Task]
    """What it can do."""

    async def ask(self, requests: Sequence[Request]) -> Sequence[Reply | Missing]:
        """One reply a request, in the same order."""
        ...


def require(judge: Judge, component: str, *tasks: Task) -> Judge:
    """The judge, if it can do `tasks`.

    Raises:
        InputError: it cannot; names the component, the judge and what it can do.
    """
    lacking = [task for task in tasks if task not in judge.tasks]
    if lacking:
        raise InputError(
            f"{component}: judge {judge.name!r} cannot {', '.join(lacking)}, only {', '.join(sorted(judge.tasks))}; "
            "give it a judge that can"
        )
    return judge


async def ask_each(judge: Judge, batches: Sequence[Sequence[Request]]) -> list[list[Reply | Missing]]:
    """Puts all requests to the judge in one call and hands the replies back in the same nesting.

    A reply that does not hold one number in [0, 1] for each option, adding up to 1 for a choice, comes back as Missing.

    Raises:
        ComponentError: the judge answered with the wrong number of replies.
    """
    requests = [request for batch in batches for request in batch]
    replies = list(await judge.ask(requests)) if requests else []
    if len(replies) != len(requests):
        raise ComponentError(
            f"judge {judge.name!r}: got {len(replies)} replies to {len(requests)} requests, expected one for each"
        )
    complete = iter([_complete(request, reply) for request, reply in zip(requests, replies, strict=True)])
    return [[next(complete) for _ in batch] for batch in batches]


def _complete(request: Request, reply: Reply | Missing) -> Reply | Missing:
    if isinstance(reply, Missing):
        return reply
    if len(reply.values) != len(request.options):
        detail = f"{len(reply.values)} answers to {len(request.options)} options"
    elif not all(0.0 <= value <= 1.0 for value in reply.values):
        detail = f"answers outside [0, 1]: {reply.values}"
    elif request.task is Task.CHOOSE and abs(sum(reply.values) - 1) > 1e-3:
        detail = f"probabilities that do not add up to 1: {reply.values}"
    else:
        return reply
    return Missing(Reason.UNPARSEABLE, f"{request.task}: {detail}; the judge said {reply.raw[:200]!r}")
