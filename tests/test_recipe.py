"""Tests of capreward.recipe, of the recipes that come with the project, and of `capreward train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny import llava

from capreward import recipe, shapes
from capreward.cli import main
from capreward.errors import InputError
from capreward.train.config import TrainConfig

RECIPES = Path(__file__).parents[1] / "recipes"
SETTINGS: dict[str, Any] = {"model": "shapes", "data": "shapes", "out": "unused", "judge": {"name": "shapes"}}
QUICK = ("steps=2", "groups=2", "group_size=2", "max_tokens=8", "held_out=3")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
class TestRecipes:
    """The files in recipes/."""

    def test_are_settings_of_a_run(self, path: Path) -> None:
        config = TrainConfig.from_yaml(path)
        assert config.held_out > 0

    def test_name_a_suite_that_their_judge_can_serve(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "unused")
        config = TrainConfig.from_yaml(path)
        judge = {key: value for key, value in config.judge.items() if key != "cache"}
        suite = recipe.make_suite(config.model_copy(update={"judge": judge}))
        assert suite.max_missing == config.max_missing


def test_every_model_and_paper_of_the_readme_has_a_recipe() -> None:
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    assert {f"balcaprl-{model}" for model in ("qwen2.5-vl-3b", "qwen2.5-vl-7b", "llava-1.5-7b")} <= names
    assert {"caprl-qwen2.5-vl-3b", "rubicap-qwen2.5-vl-7b", "rubicap-qwen2-vl-2b", "shapes"} <= names


class TestFind:
    """A recipe by path or by name."""

    @pytest.mark.parametrize("name", ["shapes", "shapes.yaml", "recipes/shapes.yaml", "caprl-qwen2.5-vl-3b"])
    def test_by_name(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert recipe.find(Path(name)) == RECIPES / f"{Path(name).name.removesuffix('.yaml')}.yaml"

    def test_a_file_of_ones_own_comes_first(self, tmp_path: Path) -> None:
        own = tmp_path / "shapes.yaml"
        own.touch()
        assert recipe.find(own) == own

    def test_neither(self) -> None:
        with pytest.raises(InputError, match=r"^nothing.yaml: no such file; .*, rubicap-qwen2.5-vl-7b, shapes$"):
            recipe.find(Path("nothing.yaml"))

    def test_a_folder_of_ones_own_is_not_the_packages(self) -> None:
        with pytest.raises(InputError, match=r"^mistyped/shapes\.yaml: no such file"):
            recipe.find(Path("mistyped/shapes.yaml"))


class TestMakeItems:
    """Items of a file, of a dataset, of the drawn world."""

    @pytest.fixture(autouse=True)
    def _a_dataset_in_the_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recipe, "find_dataset", lambda _, name: Path(name))

    def test_of_the_drawn_world(self) -> None:
        items = recipe.make_items(TrainConfig(**SETTINGS, seed=3))
        assert len(items) == recipe.SCENES
        assert items[0] == shapes.items(1, seed=3)[0]

    def test_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "items.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
        config = TrainConfig(**{**SETTINGS, "data": str(tmp_path / "items.jsonl"), "held_out": 1})
        assert [item.id for item in recipe.make_items(config)] == ["a", "b"]

    def test_have_to_be_more_than_are_held_out(self, tmp_path: Path) -> None:
        (tmp_path / "items.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
        config = TrainConfig(**{**SETTINGS, "data": str(tmp_path / "items.jsonl"), "held_out": 2})
        with pytest.raises(InputError, match=r"holds 2 items, expected more than the 2 held out"):
            recipe.make_items(config)

    def test_of_a_dataset_keep_the_bytes_of_their_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        items = shapes.items(2)
        rows = datasets.Dataset.from_list(
            [{"id": item.id, "image": {"bytes": item.image, "path": None}} for item in items]
        )
        asked = {}

        def load_dataset(name: str, split: str) -> Any:
            asked[name] = split
            return rows.cast_column("image", datasets.Image())

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        found = recipe.make_items(TrainConfig(**{**SETTINGS, "data": "hf:someone/captions:validation"}))
        assert asked == {"someone/captions": "validation"}
        assert [item.image for item in found] == [item.image for item in items]

    def test_of_a_dataset_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_dataset(name: str, split: str) -> Any:
            assert (name, split) == ("someone/captions", "train[:10]")
            raise FileNotFoundError("Dataset 'someone/captions' doesn't exist\nmore")

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(
            InputError, match=r"data: hf:someone/captions:train\[:10\] cannot be loaded: Dataset .* exist$"
        ):
            recipe.make_items(TrainConfig(**{**SETTINGS, "data": "hf:someone/captions:train[:10]"}))


class TestMakeSuite:
    """The suite of the settings."""

    def test_has_weights_and_limit(self) -> None:
        suite = recipe.make_suite(TrainConfig(**SETTINGS, suite="everything", weights={"rubric": 0}, max_missing=0.1))
        assert dict(zip(suite.names, suite.weights, strict=True))["rubric"] == 0
        assert suite.max_missing == 0.1

    def test_judge_does_not_take_what_it_does_not_know(self) -> None:
        with pytest.raises(InputError, match="judge: got colour, expected some of name, base_url, "):
            recipe.make_suite(TrainConfig(**{**SETTINGS, "judge": {"name": "lite", "colour": "red"}}))

    def test_judge_of_the_drawn_world_has_no_options(self) -> None:
        with pytest.raises(InputError, match=r"judge 'shapes': got cache, which this kind of judge does not have"):
            recipe.make_suite(TrainConfig(**{**SETTINGS, "judge": {"name": "shapes", "cache": "a.sqlite"}}))


class TestTrain:
    """`capreward train`."""

    @pytest.fixture
    def start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A run's folder; the drawn world's captioner hardly warms up."""
        monkeypatch.setattr(recipe, "WARM_UP", 1)
        monkeypatch.setattr(recipe, "SCENES", 12)
        return tmp_path / "run"

    def run(self, out: Path, *more: str) -> int:
        changes = [part for setting in QUICK for part in ("--set", setting)]
        return main(["train", str(RECIPES / "shapes.yaml"), "--set", f"out={out}", *changes, *more])

    def test_runs_the_drawn_world_end_to_end(self, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(start) == 0
        printed = capsys.readouterr().out
        assert "3 held-out items" in printed
        assert "precision" in printed
        assert len((start / "metrics.jsonl").read_text().splitlines()) == 2
        assert len((start / "after.jsonl").read_text().splitlines()) == 3
        assert (start / "before_after.png").read_bytes().startswith(b"\x89PNG")
        assert (start / "final" / "model.safetensors").is_file()

    def test_resumes_with_the_same_start(self, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(start) == 0
        warmed_up = (start / "start-0" / "model.safetensors").stat().st_mtime_ns
        assert self.run(start) == 2
        assert "--resume" in capsys.readouterr().err
        assert self.run(start, "--resume", "--set", "steps=3") == 0
        steps = [json.loads(line)["step"] for line in (start / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3]
        assert (start / "start-0" / "model.safetensors").stat().st_mtime_ns == warmed_up

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (("--set", "steps"), "expected NAME=VALUE"),
            (("--set", "stepz=3"), "stepz: got 3; there is no such setting; expected one of model, data"),
            (("--set", "loss=ppo"), "loss: got 'ppo'"),
            (("--set", "weights={colour: 1}"), "got component 'colour'"),
            (("--set", "model=no/where"), "Policy: model no/where is neither a path nor in "),
            (("--set", "data=hf:no/where"), "train: data set no/where is neither a path nor in "),
            (("--set", "seed=-1"), "seed: got -1"),
            (("--set", "out=/dev/null/run"), "/dev/null is a file; expected a folder"),
        ],
    )
    def test_says_what_is_wrong(
        self, start: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(start, *more) == 2
        assert message in capsys.readouterr().err

    def test_interrupted(
        self, start: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted(_: TrainConfig) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(recipe, "make_trainer", interrupted)
        assert self.run(start) == 130
        assert "--resume" in capsys.readouterr().err

    def test_trains_a_model_of_a_folder_on_a_file(self, tmp_path: Path) -> None:
        model, processor = llava()
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        rows = [json.loads(item.model_dump_json()) for item in shapes.items(4)]
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths = ("--set", f"model={tmp_path / 'model'}", "--set", f"data={tmp_path / 'items.jsonl'}")
        assert self.run(tmp_path / "run", *paths, "--set", "held_out=1", "--set", "kl=0.1", "--set", "lora_rank=2") == 0
        assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()
