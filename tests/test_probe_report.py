from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import FakeComponent
from PIL import Image

from capreward import Item, RewardSuite, Rollout
from capreward.attacks import named
from capreward.probe import Findings, Probe
from capreward.probe_report import figure, margin, print_findings, write
from capreward.records import count_words
from capreward.report import make_console

CUP, CAT = (Item(id=name, references=("A white cup stands on a table.",)) for name in ("cup", "cat [bold]"))
ROLLOUTS = [Rollout(item=item, caption=text) for item in (CUP, CAT) for text in ("A white cup.", "A cup on a table.")]


@pytest.fixture(scope="module")
def found() -> Findings:
    pays = {"length_of_it": FakeComponent(lambda rollout: min(1.0, count_words(rollout.caption) / 2000))}
    return Probe(RewardSuite(pays), ROLLOUTS, attacks=named(["empty", "very long"])).run(progress=False)


def test_table(found: Findings, capsys: pytest.CaptureFixture[str]) -> None:
    print_findings(found, 0.0, make_console())
    out = capsys.readouterr().out
    assert "2 attacks on 4 honest captions in 2 groups" in out
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines() if line.strip()}
    assert "100%" in lines["very long !"]
    assert "length_of_it" in lines["empty"]
    assert lines["empty"].count("-") >= 3
    assert "as it is: 1 attacks win" in out
    assert "! very long: length_of_it pays for it; " in out
    assert "1 of 2 attacks win, or buy a missing score, with more than 0% of their captions" in out


def test_margin(found: Findings) -> None:
    one = found.of("very long")
    assert margin(one).startswith(f"{one.margin:+.2f} [{one.low:+.2f}, ")
    assert (
        margin(Probe(RewardSuite({"x": FakeComponent(0.5)}), ROLLOUTS[:2]).run(progress=False).of("empty")) == "-0.50"
    )


def test_files(found: Findings, tmp_path: Path) -> None:
    paths = write(found, tmp_path / "out", 0.5)
    assert [path.name for path in paths] == ["probe.json", "probe.png"]
    data = json.loads(paths[0].read_text(encoding="utf-8"))
    assert data["threshold"] == 0.5
    assert list(data["failed"]) == ["very long"]
    assert len(data["findings"]) == 6
    with Image.open(paths[1]) as picture:
        assert picture.format == "PNG"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["probe.json", "probe.png"]


def test_figure_has_a_row_an_attack_and_a_column_a_component(found: Findings) -> None:
    heat, margins = figure(found).axes
    assert [label.get_text() for label in heat.get_yticklabels()] == ["empty", "very long"]
    assert [label.get_text() for label in heat.get_xticklabels()] == ["length_of_it", "reward", "advantage"]
    assert len(heat.texts) == 6
    assert len(margins.lines) == 2 * 2 + 1
