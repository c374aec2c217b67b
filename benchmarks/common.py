"""What every benchmark shares: its results file, the table in its README, and the one line that a quick run prints.

`results/<device>.json` holds the headline and the measured rows, and what they depend on. Where a README has
the two marks below, `finish` writes the headline between them, a column for each results file: no number is typed by hand.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MARKS = "<!-- results -->", "<!-- /results -->"


def finish(
    folder: Path,
    headline: Sequence[Mapping[str, Any]],
    details: Mapping[str, Any],
    quick: bool,
    *,
    packages: Sequence[str] = ("capreward", "numpy"),
    versions: Mapping[str, str] | None = None,
    device: str = "cpu",
) -> None:
    """Write the results of a full run; print those of a quick run, and leave the files alone.

    Args:
        folder: the benchmark's own.
        headline: ``{"name", "value", "unit"}`` each; the same names in a quick run and in a full one.
        details: all else that was measured, as plain JSON types.
        packages: installed packages whose versions matter.
        versions: versions of what this environment does not hold.
        device: names the results file: "cpu", or an accelerator in few letters.
    """
    headline = [{**entry, "value": rounded(entry["value"])} for entry in headline]
    if quick:
        print(json.dumps({"headline": headline}), flush=True)
        return
    results = {
        "command": shlex.join(["python", Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {"name": device, "cpu": cpu(), "cores": os.cpu_count()},
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in packages},
            **(versions or {}),
        },
        "headline": headline,
        **details,
    }
    path = folder / "results" / f"{device}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    update_readme(folder)
    print(json.dumps({"headline": headline}, indent=2))


def update_readme(folder: Path) -> None:
    """Put the headline of every results file between the marks of the README; one without marks stays as it is."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if not all(mark in text for mark in MARKS):
        return
    results = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("results/*.json"))
    }
    cells: dict[str, dict[str, str]] = {}
    for device, result in results.items():
        for entry in result["headline"]:
            cells.setdefault(entry["name"], {})[device] = f"{entry['value']} {entry['unit']}".strip()
    rows = [["", *results], ["---"] * (len(results) + 1)]
    rows += [[name, *(values.get(device, "") for device in results)] for name, values in cells.items()]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    sources = "\n".join(
        f"`{name}`: {r['device']['cpu']}, {r['device']['cores']} cores, {r['date']}" for name, r in results.items()
    )
    new = f"{MARKS[0]}\n{table}\n\n{sources}\n{MARKS[1]}"
    readme.write_text(re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: new, text, flags=re.DOTALL), encoding="utf-8")


def rounded(value: float) -> float:
    """To three digits: more would claim more than a timing can tell."""
    value = float(f"{value:.3g}")
    return int(value) if value.is_integer() else value


def cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


@contextmanager
def unfenced() -> Iterator[None]:
    """The judges' prompts without the two marks around what a policy wrote; not a word else is changed."""
    from capreward import prompts

    load = prompts.load

    def without(name: str) -> prompts.Prompt:
        prompt = load(name)
        user = prompt.user.replace("<$mark>\n", "").replace("</$mark>\n", "")
        assert "$mark" not in user != prompt.user
        return replace(prompt, user=user)

    prompts.load = without  # type: ignore[assignment]
    try:
        yield
    finally:
        prompts.load = load
