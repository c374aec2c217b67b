"""`capreward evaluate` on 5,000 captions of 8 questions each with the lite judge: time, memory, and what a kill costs.

    python benchmarks/evaluate/run.py [--quick]

1,000 items, 5 captioners. The captions are those of ImageInWords that come with the package, with every twelfth word drawn anew,
so that no two sentences are the same and the judge has each to embed: for speed it does not matter what they say. The questions
are those of the package's photographs and have nothing to do with them. One thread.

The command is killed (SIGKILL) when a third of the answers are kept (in a quick run: any), started again until it ends, and
started once more. What each metric costs by itself is measured on 200 of the captions, in this process, with a judge that
knows nothing yet.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import finish

from capreward import LiteJudge, Rollout
from capreward.data import read_rollouts, write_rows
from capreward.evaluate import evaluate_captions
from capreward.samples import iiw, photos

CAPTIONERS, QUESTIONS = 5, 8
ALONE = ("statistics", "qa", "captionqa", "bcapscore", "arena")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="65 captions, printed as one JSON line")
    quick = parser.parse_args().quick
    items = 13 if quick else 1000
    with tempfile.TemporaryDirectory() as folder:
        captions, out = Path(folder, "captions.jsonl"), Path(folder, "out")
        rows = list(made(items))
        write_rows(captions, rows)
        count = items * CAPTIONERS
        requests = count * QUESTIONS

        killed_after, kept = killed(captions, out, 1 if quick else requests // 3)
        again = evaluated(captions, out, "qa,statistics")
        once_more = evaluated(captions, out, "qa,statistics")
        asked_again = again["calls"] + kept - replies(out)
        assert asked_again == 0, f"{asked_again} answers that were kept were asked for again"
        assert once_more["calls"] == 0
        alone = {metric: seconds_alone(metric, rows[: 1 if quick else 40]) for metric in ALONE}
    start = once_more["seconds"]
    whole = killed_after + again["seconds"]
    headline = [
        {"name": "qa and statistics, killed and started again", "value": whole / 60, "unit": "min"},
        {"name": "questions answered", "value": requests / (whole - 2 * start), "unit": "questions/s"},
        {"name": "peak memory", "value": again["peak_mb"], "unit": "MB"},
        {"name": "answers kept at the kill", "value": kept, "unit": ""},
        {"name": "of these asked for again", "value": asked_again, "unit": ""},
        {"name": "the same once more, all answers kept", "value": start, "unit": "s"},
    ]
    for metric, seconds in alone.items():
        headline.append({"name": f"{metric} alone, of 1,000 captions", "value": 1000 * seconds, "unit": "s"})
    details = {
        "captions": count,
        "questions": requests,
        "words_per_caption": sum(len(r["caption"].split()) for row in rows for r in row["rollouts"]) / count,
        "requests_after_the_kill": again["requests"],
        "calls_after_the_kill": again["calls"],
        "seconds_a_caption": alone,
        "load_of_the_machine": os.getloadavg()[2],
        "threads": int(os.environ["OMP_NUM_THREADS"]),
    }
    finish(
        Path(__file__).parent,
        headline,
        details,
        quick,
        packages=("capreward", "numpy", "torch", "sentence-transformers"),
    )


def made(items: int) -> Any:
    """Rows of items with a caption of each captioner."""
    chance = random.Random(0)
    texts = [rollout.caption for rollout in iiw()]
    vocabulary = sorted({word for text in texts for word in text.split() if word.isalpha()})
    facts = [fact.model_dump() for fact in photos()[0].item.facts]
    pool = list({q.text: q.model_dump(mode="json") for rollout in photos() for q in rollout.item.questions}.values())
    for number in range(items):
        rollouts = []
        for captioner in range(CAPTIONERS):
            words = texts[(number * CAPTIONERS + captioner) % len(texts)].split()
            changed = [chance.choice(vocabulary) if place % 12 == 3 else word for place, word in enumerate(words)]
            rollouts.append({"caption": " ".join(changed), "metadata": {"model": f"captioner {captioner}"}})
        questions = [pool[(number * QUESTIONS + k) % len(pool)] for k in range(QUESTIONS)]
        yield {
            "id": f"item{number}",
            "references": [texts[number % len(texts)]],
            "facts": facts,
            "questions": questions,
            "rollouts": rollouts,
        }


def seconds_alone(metric: str, rows: list[Any]) -> float:
    """A caption, of one metric."""
    captions: dict[str, list[Rollout]] = {}
    for rollout in read_rollouts(rows):
        captions.setdefault(rollout.metadata["model"], []).append(rollout)
    judge = LiteJudge()
    start = time.perf_counter()
    evaluate_captions(captions, judge, metrics=[metric])
    return (time.perf_counter() - start) / (len(rows) * CAPTIONERS)


def command(captions: Path, out: Path, metrics: str) -> list[str]:
    program = str(Path(sys.executable).with_name("capreward"))
    return [program, "evaluate", str(captions), "--by", "model", "--metrics", metrics, "--out", str(out)]


def killed(captions: Path, out: Path, at: int) -> tuple[float, int]:
    """Seconds until so many replies were kept and the process was killed; replies that were kept."""
    start = time.perf_counter()
    process = subprocess.Popen(command(captions, out, "qa,statistics"), stdout=subprocess.DEVNULL)
    while replies(out) < at and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    code = process.wait()
    assert code == -signal.SIGKILL, f"ended with {code} before it could be killed"
    return time.perf_counter() - start, replies(out)


def replies(out: Path) -> int:
    file = out / "replies.sqlite"
    if not file.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT count(*) FROM replies").fetchone()[0])
    except sqlite3.OperationalError:  # not set up yet
        return 0


def evaluated(captions: Path, out: Path, metrics: str) -> dict[str, Any]:
    """Seconds and peak memory of a call, and what its judge did; the progress bar is shown."""
    start = time.perf_counter()
    process = subprocess.Popen(command(captions, out, metrics), stdout=subprocess.DEVNULL)
    peak = [0]
    watch = threading.Thread(target=memory, args=(process, peak), daemon=True)
    watch.start()
    assert process.wait() == 0
    seconds = time.perf_counter() - start
    watch.join()
    judge = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["judge"] or {"usage": {}}
    usage = {name: judge["usage"].get(name, 0) for name in ("requests", "calls", "hits")}
    return {"seconds": seconds, "peak_mb": peak[0] / 1024, **usage}


def memory(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    """Keeps the largest resident size of the process, in kB, while it lives."""
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM")), "VmHWM 0")
        except OSError:
            return
        peak[0] = max(peak[0], int(line.split()[1]))
        time.sleep(0.2)


if __name__ == "__main__":
    main()
