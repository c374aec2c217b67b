"""A missing score and the reasons for one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why a score is missing. None of these is the policy's doing: what the policy did is scored."""

    NO_IMAGE = "no_image"
    NO_REFERENCE = "no_reference"
    NO_FACTS = "no_facts"
    NO_QUESTIONS = "no_questions"
    NO_RUBRIC = "no_rubric"
    TIMEOUT = "timeout"
    SERVER = "server"
    REFUSED = "refused"
    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    DEPENDS = "depends"
    """A gate reads the score of another component, and that one is missing."""
    NAN = "nan"
    """The component answered NaN without saying why."""
    NOT_ASKED = "not_asked"
    """Only in a table's `raw`: a gate had already fixed the value, so the judge was spared the question."""


@dataclass(frozen=True, slots=True)
class Missing:
    """No verdict: never read as a score of 0."""

    reason: Reason
    detail: str = ""
    raw: str = field(default="", repr=False)
    """What the judge said, word for word, where it spoke but `judges.parse` could not read it, or it was cut."""

    @property
    def unread(self) -> bool:
        """Whether a better parser may yet read what was said. What was cut stays unanswered, even if it happens to parse."""
        return self.reason is Reason.UNPARSEABLE and bool(self.raw)
