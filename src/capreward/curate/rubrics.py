"""Rubrics: what a committee of teachers says of an image, and the student's caption does not (RubiCap, arXiv 2603.09160)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from capreward.curate.stage import Curated, Outcome
from capreward.curate.writing import INSTRUCTION, clean, described, distinct, fold, instructs, prompt_hashes, read, sees
from capreward.errors import InputError
from capreward.judges.base import Judge, Reply, Request, Task, ask_each, require
from capreward.missing import Missing, Reason
from capreward.records import Criterion, Item

FIELDS = ("criterion", "severity", "teachers")
WEIGHTS = {"critical": 3.0, "important": 2.0, "minor": 1.0}
"""RubiCap's."""


class Rubrics:
    """Writes binary criteria that the student's caption fails, and keeps those that the teachers agree on.

    RubiCap (arXiv 2603.09160): teachers caption the image, a writer compares the student's caption with theirs and says what it
    missed or got wrong. Which teachers say so is asked of the judge, caption by caption; the writer's own word for it is
    recorded and not trusted. A criterion is kept when at least `agree` captions of teachers meet it and the student's does
    not (each by SUPPORT, at 0.5), so none is kept that no teacher would pass. Of criteria in the same words but for case,
    spaces and final punctuation, one is left, at the heaviest severity.

    Args:
        teachers: judges that describe the image, of different names; or a function that gives an item's captions,
            of which those in the same words count once.
        writer: criticises; sees the image too if it sees images and the item has one.
        judge: says whether a caption meets a criterion; the one that the reward will ask, or a stronger one.
        student: a judge that describes the image, or a function that gives the caption of an item, None if it has none.
        agree: captions of teachers that have to meet a criterion.
        weights: of each severity; another severity makes a criterion malformed.
        instruction: to teachers and student, where they are judges.

    Missing: no image to describe (`no_image`); fewer than `agree` teachers' captions (`no_reference`, or why the teacher
    failed); no student's caption (`no_reference`); the student, the writer or the judge failed. A teacher that fails is
    recorded, and the others go on while they are enough. An empty rubric is a result: the student made no mistake that
    teachers agree on.
    """

    name = "rubrics"

    def __init__(
        self,
        teachers: Sequence[Judge] | Callable[[Item], Sequence[str]],
        writer: Judge,
        judge: Judge,
        *,
        student: Judge | Callable[[Item], str | None],
        agree: int = 2,
        weights: Mapping[str, float] = WEIGHTS,
        instruction: str = INSTRUCTION,
    ) -> None:
        self.given = teachers if callable(teachers) else None
        self.teachers = () if callable(teachers) else tuple(sees(t, "Rubrics", Task.DESCRIBE) for t in teachers)
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) < len(names):
            raise InputError(
                f"Rubrics: got teachers {', '.join(names)}, expected different ones: one agrees with itself"
            )
        if agree < 1 or (self.given is None and agree > len(names)):
            raise InputError(f"Rubrics: got agree={agree} with {len(names)} teachers, expected 1 up to their number")
        if not weights or not all(0 < weight < float("inf") for weight in weights.values()):
            raise InputError(f"Rubrics: got weights={dict(weights)}, expected a finite number > 0 for each severity")
        self.student: Judge | None = None
        self.given_student: Callable[[Item], str | None] | None = None
        if isinstance(student, Judge):
            self.student = sees(student, "Rubrics", Task.DESCRIBE)
        elif callable(student):
            self.given_student = student
        else:
            raise InputError(f"Rubrics: got student={student!r}, expected a judge, or a function of an item")
        self.writer = require(writer, "Rubrics", Task.CRITICISE)
        self.judge = require(judge, "Rubrics", Task.SUPPORT)
        self.agree, self.weights, self.instruction = agree, dict(weights), instructs(instruction, "Rubrics")

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Teachers and student where they are judges, writer and judge."""
        student = () if self.student is None else (self.student,)
        return distinct((*self.teachers, *student, self.writer, self.judge))

    def describe(self) -> dict[str, Any]:
        """Settings, judges and prompts."""
        describing = [Task.DESCRIBE] if self.student is not None or self.teachers else []
        return {
            "teachers": [teacher.name for teacher in self.teachers] or _name(self.given),
            "student": _name(self.given_student) if self.student is None else self.student.name,
            "writer": self.writer.name,
            "writer_sees": "captions and image" if self.writer.images else "captions",
            "judge": self.judge.name,
            "agree": self.agree,
            "weights": self.weights,
            "instruction": self.instruction,
            "prompts": prompt_hashes(Task.CRITICISE, Task.SUPPORT, *describing),
        }

    async def curate(self, items: Sequence[Item]) -> list[Outcome]:
        """Items with `rubric`; records: teachers' and student's captions, each criterion with what was found of it."""
        captions = await self._captions(items)
        written = await ask_each(
            self.writer,
            [
                [] if isinstance(found, Missing) else [self._critique(item, found)]
                for item, found in zip(items, captions, strict=True)
            ],
        )
        replies = [
            found if isinstance(found, Missing) else answers[0]
            for found, answers in zip(captions, written, strict=True)
        ]
        criteria = [self._read(reply.texts) if isinstance(reply, Reply) else [] for reply in replies]
        verdicts = await ask_each(self.judge, [self._requests(*row) for row in zip(captions, criteria, strict=True)])
        return [self._outcome(*row) for row in zip(items, captions, replies, criteria, verdicts, strict=True)]

    def count(self, record: Mapping[str, Any]) -> dict[str, int]:
        """What became of the criteria: `written` ones are `kept`, `merged` or `rejected`.

        Rejected ones are `malformed`, `not_agreed` or `already_met`, the last two at once where both hold. `empty`: none
        was kept.
        """
        names = ("written", "kept", "merged", "rejected", "malformed", "not_agreed", "already_met", "teachers_failed")
        counts = Counter(dict.fromkeys(names, 0))
        for criterion in record["criteria"]:
            counts.update(("written", criterion["verdict"], *criterion["why"]))
        counts["teachers_failed"] = len(record["failed"])
        return {**counts, "empty": int(not counts["kept"])}

    async def _captions(self, items: Sequence[Item]) -> list[dict[str, Any] | Missing]:
        """Of each item: `teachers`, `student`, and the teachers that `failed`."""
        describers = [*self.teachers, *([] if self.student is None else [self.student])]
        told = await asyncio.gather(*(described(judge, items, self.instruction) for judge in describers))
        return [self._told(item, [captions[i] for captions in told]) for i, item in enumerate(items)]

    def _told(self, item: Item, told: Sequence[str | Missing]) -> dict[str, Any] | Missing:
        """The captions as one item's are used; `told`: by the judges, teachers first."""
        of_teachers: Sequence[str | Missing] = told[: len(self.teachers)]
        names = [teacher.name for teacher in self.teachers]
        if self.given is not None:
            texts = [clean(text) for text in self.given(item)]
            of_teachers = list(dict.fromkeys(texts))  # a copy is no second teacher
            names = [f"given {texts.index(text) + 1}" for text in dict.fromkeys(texts)]
        teachers, failed = [], []
        missing = Missing(Reason.NO_REFERENCE, f"item {item.id!r} has fewer than {self.agree} teachers' captions")
        for name, text in zip(names, of_teachers, strict=True):
            if isinstance(text, Missing):
                missing = text
                failed.append({"teacher": name, "why": clean(f"{text.reason}: {text.detail}")})
            elif text:
                teachers.append({"teacher": name, "caption": text})
        if len(teachers) < self.agree:
            return missing
        student = told[-1] if self.given_student is None else self.given_student(item)
        if student is None:
            return Missing(Reason.NO_REFERENCE, f"item {item.id!r} has no student's caption")
        if isinstance(student, Missing):
            return student
        student = clean(student)
        return {"teachers": teachers, "student": student, "failed": failed}

    def _critique(self, item: Item, captions: Mapping[str, Any]) -> Request:
        teachers = tuple(told["caption"] for told in captions["teachers"])
        images = (item.image,) if self.writer.images and item.image is not None else ()
        return Request(Task.CRITICISE, captions["student"], teachers, images=images)

    def _read(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The criteria as they are recorded, those that are open with the verdict "kept"."""
        criteria: list[dict[str, Any]] = []
        first: dict[str, dict[str, Any]] = {}
        for text in texts:
            entry = read(text, FIELDS)
            wrong = entry if isinstance(entry, str) else malformed(entry, self.weights)
            if wrong or isinstance(entry, str):
                criteria.append({"verdict": "rejected", "why": ["malformed"], "fault": wrong, "raw": clean(text)})
                continue
            claimed = entry["teachers"] if isinstance(entry["teachers"], list) else []
            criterion = {
                "verdict": "kept",
                "why": [],
                "criterion": clean(entry["criterion"]),
                "severity": entry["severity"],
                "claimed": [number for number in claimed if type(number) is int],
            }
            criteria.append(criterion)
            other = first.setdefault(fold(criterion["criterion"]), criterion)
            if other is not criterion:
                criterion["verdict"] = "merged"
                other["severity"] = max(other["severity"], criterion["severity"], key=self.weights.__getitem__)
        return criteria

    def _requests(self, captions: Mapping[str, Any] | Missing, criteria: Sequence[Mapping[str, Any]]) -> list[Request]:
        """Every open criterion against each teacher's caption, and last the student's."""
        texts = tuple(criterion["criterion"] for criterion in criteria if criterion["verdict"] == "kept")
        if isinstance(captions, Missing) or not texts:
            return []
        told = [teacher["caption"] for teacher in captions["teachers"]]
        return [Request(Task.SUPPORT, caption, texts) for caption in (*told, captions["student"])]

    def _outcome(
        self,
        item: Item,
        captions: Mapping[str, Any] | Missing,
        written: Reply | Missing,
        criteria: Sequence[dict[str, Any]],
        verdicts: Sequence[Reply | Missing],
    ) -> Outcome:
        if isinstance(captions, Missing):
            return captions
        for reply in (written, *verdicts):
            if isinstance(reply, Missing):
                return reply  # it was about every criterion
        still_open = [criterion for criterion in criteria if criterion["verdict"] == "kept"]
        by_caption = [reply.values for reply in verdicts if isinstance(reply, Reply)]
        for criterion, *values in zip(still_open, *by_caption, strict=True):
            *teachers, student = values
            criterion |= {"teachers": teachers, "student": student}
            if sum(p >= 0.5 for p in teachers) < self.agree:
                criterion["why"].append("not_agreed")
            if student >= 0.5:
                criterion["why"].append("already_met")
            if criterion["why"]:
                criterion["verdict"] = "rejected"
        rubric = tuple(
            Criterion(text=criterion["criterion"], weight=self.weights[criterion["severity"]])
            for criterion in still_open
            if criterion["verdict"] == "kept"
        )
        return Curated(item.model_copy(update={"rubric": rubric}), {**captions, "criteria": list(criteria)})


def _name(given: object) -> str:
    """Of a function that gives captions: its own, if it has one, so that a run does not go on with others."""
    return str(getattr(given, "name", "given captions"))


def malformed(entry: Mapping[str, Any], severities: Mapping[str, float]) -> str:
    """What is wrong with a criterion's fields, "" if nothing: a text, and one of the severities.

    Whom the writer names as teachers is not checked: it is not relied upon.
    """
    if not isinstance(entry["criterion"], str) or not clean(entry["criterion"]):
        return "criterion: expected a text"
    if not isinstance(entry["severity"], str) or entry["severity"] not in severities:
        return f"severity: expected one of {', '.join(severities)}"
    return ""
