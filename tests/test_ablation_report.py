from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import FakeComponent

from capreward import Item, LengthMask, Missing, Reason, RewardSuite, Rollout, ablation_report as report
from capreward.ablation import RECORDED, Ablation, Variant, default_variants
from capreward.ablation_report import DARK, LIGHT, Report, make_report
from capreward.ledger import Ledger, LedgerWriter

STRANGE = "<b>$x$ & _y_"
NAMES = ("qa", "fluency", STRANGE)


def score(folder: Path, items: int = 4) -> Ablation:
    chance = np.random.default_rng(0)

    def verdict(_: Rollout) -> Any:
        return Missing(Reason.SERVER, "down") if chance.random() < 0.1 else float(round(chance.random(), 1))

    suite = RewardSuite(
        {
            "qa": FakeComponent(verdict),
            "fluency": FakeComponent(lambda _: chance.random()),
            STRANGE: FakeComponent(0.5),
        },
        gates=[LengthMask("fluency")],
        ledger=LedgerWriter(folder),
    )
    suite.score(
        [
            Rollout(item=Item(id=f"item {n}", references=("a b c d",)), caption="word " * int(chance.integers(1, 12)))
            for n in range(items)
            for _ in range(5)
        ]
    )
    return Ablation(Ledger(folder), resamples=50)


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    return score(tmp_path_factory.mktemp("ledger"))


@pytest.fixture(scope="module")
def made(ablation: Ablation) -> Report:
    with (ablation.ledger.folder / "rollouts.jsonl").open("a") as file:
        file.write('{"id": "cut')
    return make_report(ablation, {**default_variants(ablation), "no gates": Variant(gates=[])})


class Page(HTMLParser):
    """Elements and attributes of a page, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.open = tag

    def handle_endtag(self, tag: str) -> None:
        self.open = None if tag == self.open else self.open

    def handle_data(self, data: str) -> None:
        if self.open:
            self.tables[-1][-1][-1] += data


class TestPage:
    def test_holds_everything_itself(self, made: Report) -> None:
        page = Page(made.page)
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "link", "img", "iframe", "object", "style src"}
        for _, attributes in page.elements:
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href", "xlink:href", "srcset"):
                    assert str(value).startswith("#")
        assert not re.findall(r"url\((?!#)|@import", made.page)

    def test_ids_are_unique_and_references_lead_somewhere(self, made: Report) -> None:
        page = Page(made.page)
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids)) > 0
        references = [attributes["xlink:href"] for _, attributes in page.elements if "xlink:href" in attributes]
        references += [f"#{name}" for name in re.findall(r"url\(#([^)]*)\)", made.page)]
        assert references
        assert {f"#{name}" for name in ids} >= set(references)

    def test_every_figure_says_what_it_shows(self, made: Report) -> None:
        figures = [attributes for tag, attributes in Page(made.page).elements if tag == "svg"]
        assert len(figures) == 10
        for attributes in figures:
            assert attributes["role"] == "img"
            assert len(str(attributes["aria-label"])) > 40
        assert all(re.search(r"\d\.\d{3}|dominated", str(attributes["aria-label"])) for attributes in figures)

    def test_tables_hold_the_frames(self, made: Report, ablation: Ablation) -> None:
        compared, contributions, conflicts, variation, collapse, best, pareto, length = Page(made.page).tables
        assert compared[0] == ["variant", "rank_correlation", "sign_flips", "mean_change", "not_asked"]
        frame = ablation.compare({"grpo": Variant(estimator="grpo")})
        value, low, high = frame.loc[0, ["value", "low", "high"]]
        assert compared[1][:2] == ["grpo", f"{value:.3f} [{low:.3f}, {high:.3f}]"]
        assert compared[-1][0] == "no gates"
        assert int(compared[-1][-1]) == ablation.not_asked(Variant(gates=[]))["fluency"] > 0
        assert contributions[0] == ["component", "recorded", "grpo"]
        assert [row[0] for row in conflicts[1:]] == [*NAMES] == conflicts[0][1:]
        assert conflicts[3][1] == "–"  # what never varies is correlated with nothing
        assert variation[3] == [STRANGE, "0.000 [0.000, 0.000]"]
        assert [row[0] for row in collapse[1:]] == ["gdpo", "grpo"]
        assert best[0] == ["component", "best", "mean", "gain"]
        assert pareto[0] == ["variant", *NAMES, "dominated_by", "dominated"]
        assert pareto[1][0] == "recorded"
        assert length[-1][0] == "advantage"

    def test_says_what_was_lost_missing_and_not_asked(self, made: Report, ablation: Ablation) -> None:
        lost, missing, not_asked = made.warnings
        assert lost == "rollouts.jsonl: 11 bytes at its end are no whole record and were not read."
        count = ablation.missing()["qa"]
        assert missing.startswith(f"Missing scores: qa {count} ({count / 20:.1%}). They add 0")
        assert "that no judge was ever asked for" in not_asked
        assert "no gates: " in not_asked
        assert "spare=False" in not_asked
        for line in made.warnings + made.in_short:
            assert html.escape(line) in made.page

    def test_names_are_no_markup(self, made: Report) -> None:
        assert "<b>" not in made.page
        assert "&lt;b&gt;$x$ &amp; _<wbr>y_" in made.page

    def test_nothing_lost(self, tmp_path: Path) -> None:
        suite = RewardSuite({"a": FakeComponent(lambda r: len(r.caption) / 10)}, ledger=LedgerWriter(tmp_path))
        suite.score([Rollout(item=Item(id="x"), caption="w" * n) for n in (1, 2, 3)])
        made = make_report(Ablation(Ledger(tmp_path), resamples=0), {"same": RECORDED})
        assert made.warnings == []
        assert "<li>Nothing.</li>" in made.page
        assert "Without intervals." in made.page

    def test_says_the_level(self, ablation: Ablation) -> None:
        other = Ablation(ablation.ledger, resamples=10, level=0.995)
        assert "In brackets: 99.5% intervals" in make_report(other, {"same": RECORDED}).page

    def test_nothing_varies(self, tmp_path: Path) -> None:
        suite = RewardSuite({"a": FakeComponent(0.5), "b": FakeComponent(DOWN)}, ledger=LedgerWriter(tmp_path))
        suite.score([Rollout(item=Item(id=name), caption="w") for name in "xxyy"])
        ablation = Ablation(Ledger(tmp_path), resamples=10)
        made = make_report(ablation, default_variants(ablation))
        assert made.in_short == ["No variant is dominated."]


DOWN = Missing(Reason.SERVER, "down")


class TestColours:
    def test_of_figures_are_the_readers(self, made: Report) -> None:
        body = made.page[made.page.index("<body>") :]
        assert not re.findall(r"#[0-9a-f]{6}\b", body)
        assert {f"var(--{name})" for name in ("ink", "line", "first", "second", "paper")} <= set(
            re.findall(r"var\(--\w+\)", body)
        )
        assert "@media (prefers-color-scheme:dark)" in made.page

    @pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
    def test_contrast(self, colours: dict[str, str]) -> None:
        """What WCAG 2.2 asks for: 4.5 for text, 3 for graphics; and the cells of a matrix, at their deepest."""
        assert contrast(colours["ink"], colours["paper"]) >= 7
        for name in ("line", "first", "second"):
            assert contrast(colours[name], colours["paper"]) >= 3
        for name in ("first", "second"):
            assert contrast(colours["ink"], blend(colours[name], colours["paper"], 0.45)) >= 4.5


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[n : n + 2], 16) for n in (1, 3, 5)]) / 255


def blend(over: str, under: str, alpha: float) -> str:
    mixed = (alpha * rgb(over) + (1 - alpha) * rgb(under)) * 255
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = rgb(colour)
        return float(
            np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


class TestFigures:
    def points(self, picture: Any) -> list[tuple[list[float], str]]:
        (axis,) = picture.axes
        return [(line.get_xdata().tolist(), line.get_marker()) for line in axis.lines if line.get_marker() != "None"]

    def labels(self, axis: Any) -> list[str]:
        return [label.get_text() for label in axis]

    def test_dots_are_the_values(self, ablation: Ablation) -> None:
        frame = ablation.compare({"grpo": Variant(estimator="grpo"), "without qa": Variant(drop=("qa",))})
        picture = report.compare_figure(frame, "mean_change")
        ((drawn, _),) = self.points(picture)
        assert drawn == frame[frame["measure"] == "mean_change"]["value"].tolist()
        assert self.labels(picture.axes[0].get_yticklabels()) == ["grpo", "without qa"]
        (intervals,) = picture.axes[0].collections
        given = [segment[:, 0].tolist() for segment in intervals.get_segments()]
        assert given == frame[frame["measure"] == "mean_change"][["low", "high"]].to_numpy().tolist()

    def test_series_differ_in_their_markers(self, ablation: Ablation) -> None:
        frames = {name: ablation.contributions(Variant(estimator=name)) for name in ("gdpo", "grpo", "dr_grpo")}
        picture = report.contributions_figure(frames)
        assert [marker for _, marker in self.points(picture)] == ["o", "s", "D"]
        assert [text.get_text() for text in picture.axes[0].get_legend().get_texts()] == ["gdpo", "grpo", "dr_grpo"]
        best = report.best_of_figure(ablation.best_of())
        assert [marker for _, marker in self.points(best)] == ["o", "s"]

    def test_other_frames(self, ablation: Ablation) -> None:
        for figure, frame in (
            (report.variation_figure, ablation.variation()),
            (report.length_bias_figure, ablation.length_bias()),
        ):
            ((drawn, _),) = self.points(figure(frame))
            np.testing.assert_array_equal(drawn, frame["value"])
        collapse = ablation.collapse()
        ((drawn, _),) = self.points(report.collapse_figure(collapse))
        assert drawn == collapse[collapse["measure"] == "relative"]["value"].tolist()

    def test_matrix_of_conflicts(self) -> None:
        pairs = [("a", "a", 1.0), ("a", "b", -0.5), ("b", "a", -0.5), ("b", "b", np.nan)]
        (axis,) = report.conflicts_figure(pd.DataFrame(pairs, columns=["component", "other", "value"])).axes
        assert [text.get_text() for text in axis.texts] == ["1.00", "−0.50", "−0.50", "–"]
        assert [round(cell.get_alpha(), 3) for cell in axis.patches] == [0.45, 0.225, 0.225, 0.0]
        assert axis.patches[0].get_facecolor()[:3] != axis.patches[1].get_facecolor()[:3]

    def test_matrix_of_the_front(self) -> None:
        rows = [("x", "a", 0.2, "y"), ("x", "b", 0.5, "y"), ("y", "a", 0.4, ""), ("y", "b", 0.5, "")]
        frame = pd.DataFrame(rows, columns=["variant", "component", "value", "dominated_by"])
        (axis,) = report.pareto_figure(frame).axes
        assert self.labels(axis.get_yticklabels()) == ["x (dominated)", "y"]
        assert [cell.get_alpha() for cell in axis.patches] == [0.0, 0.0, 0.45, 0.0]


class TestInShort:
    def frame(self, columns: list[str], *rows: Any) -> pd.DataFrame:
        return pd.DataFrame(rows, columns=[*columns, "value", "low", "high"])

    def test_sentences(self) -> None:
        compared = self.frame(
            ["variant", "measure"], ("x", "rank_correlation", 0.5, 0.4, 0.6), ("y", "rank_correlation", 0.9, 0.8, 1.0)
        )
        shares = self.frame(["component"], ("a", 1.1, 1.0, 1.2), ("b", -0.1, -0.2, 0.0))
        conflicts = self.frame(["component", "other"], ("a", "b", -0.5, -0.6, -0.4), ("b", "a", -0.5, -0.6, -0.4))
        pareto = self.frame(["variant"], ("x", 0.1, 0, 0), ("y", 0.2, 0, 0)).assign(dominated_by=["y", ""])
        assert report.in_short(compared, shares, conflicts, pareto) == [
            "Furthest from the recorded advantages: x, rank correlation 0.500 [0.400, 0.600]; nearest: y, 0.900 [0.800, 1.000].",
            "Of the recorded advantage's variance a makes the largest share, 1.100 [1.000, 1.200], and b the smallest, "
            "−0.100 [−0.200, 0.000].",
            "Strongest conflict: a against b, correlation −0.500 [−0.600, −0.400] within groups.",
            "Dominated: x (by y).",
        ]

    def test_conflicts_without_intervals(self) -> None:
        nothing = [self.frame(["variant", "measure"]), self.frame(["component"])]
        pareto = pd.DataFrame({"variant": ["x"], "dominated_by": [""]})
        for value, said in (
            (-1.0, "Strongest conflict: a against b, correlation −1.000 within groups."),
            (0.5, "No two components are in conflict: no correlation lies below 0."),
        ):
            conflicts = self.frame(["component", "other"], ("a", "b", value, np.nan, np.nan))
            assert report.in_short(*nothing, conflicts, pareto) == [said, "No variant is dominated."]
        alone = self.frame(["component", "other"], ("a", "a", 1.0, 1.0, 1.0))
        assert report.in_short(*nothing, alone, pareto) == ["No variant is dominated."]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<!doctype html><body><iframe id="f" width="{width}" height="800" srcdoc="{page}"></iframe><script>
const frame = document.getElementById("f");
frame.onload = () => {{
  const inside = frame.contentDocument, root = inside.documentElement;
  const figures = [...inside.querySelectorAll("svg")].map(svg => svg.getBoundingClientRect());
  document.title = JSON.stringify([root.clientWidth, root.scrollWidth, Math.min(...figures.map(f => f.width)),
    Math.max(...figures.map(f => f.right)), frame.contentWindow.getComputedStyle(inside.body).backgroundColor]);
}};
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(made: Report, tmp_path: Path, width: int, scheme: str) -> None:
    """Nothing but tables is wider than the window, figures are large enough to read, and the scheme is the reader's."""
    file = tmp_path / "measure.html"
    file.write_text(MEASURE.format(width=width, page=html.escape(made.page)), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r"<title>\[(.*)\]</title>", done.stdout)
    assert found, done.stdout[-300:]
    client, scroll, narrowest, right, background = html.unescape(found[1]).split(",", 4)
    assert float(scroll) <= float(client)
    assert float(narrowest) >= 300
    assert float(right) <= float(client)
    colour = LIGHT if scheme == "light" else DARK
    assert background.strip('"') == f"rgb({', '.join(str(round(255 * part)) for part in rgb(colour['paper']))})"
