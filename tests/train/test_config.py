from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from capreward import presets
from capreward.advantage import ESTIMATORS
from capreward.errors import InputError
from capreward.train.config import TrainConfig, parse_setting

NEEDED = {"model": "tiny", "data": "items.jsonl", "out": "run"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_is_short() -> None:
    assert len(TrainConfig.model_fields) <= 25


def test_only_three_settings_have_to_be_given() -> None:
    config = TrainConfig(**NEEDED)
    assert config.out == Path("run")
    assert config.judge == {"name": "lite"}
    required = {name for name, field in TrainConfig.model_fields.items() if field.is_required()}
    assert required == set(NEEDED)


def test_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig(**NEEDED).steps = 3  # type: ignore[misc]


def test_names_are_those_of_the_library() -> None:
    def choices(name: str) -> set[str]:
        return set(TrainConfig.model_fields[name].annotation.__args__)  # type: ignore[union-attr]

    assert choices("estimator") == set(ESTIMATORS)
    assert all(callable(getattr(presets, name)) for name in choices("suite"))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("steps", 0),
        ("groups", -1),
        ("group_size", 1),
        ("max_tokens", 2.5),
        ("temperature", 0),
        ("learning_rate", 0),
        ("learning_rate", float("inf")),
        ("warmup", -1),
        ("updates", 0),
        ("kl", -0.1),
        ("kl", float("nan")),
        ("lora_rank", -1),
        ("save_every", 0),
        ("held_out", -1),
        ("max_missing", 1.5),
        ("clip", (1.0, 0.2)),
        ("clip", (0.2, 0.0)),
        ("clip", 0.2),
        ("loss", "ppo"),
        ("estimator", "gae"),
        ("suite", "mine"),
        ("weights", {"fluency": "much"}),
        ("judge", "lite"),
        ("judge", {}),
        ("judge", {"name": 3}),
    ],
)
def test_what_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(InputError) as raised:
        TrainConfig(**NEEDED, **{setting: value})
    assert str(raised.value).startswith(setting)
    assert "got" in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("kl", 0), ("max_missing", 0), ("max_missing", 1), ("group_size", 2), ("clip", (0.99, 5.0)), ("lora_rank", 1)],
)
def test_what_is_just_allowed(setting: str, value: Any) -> None:
    assert getattr(TrainConfig(**NEEDED, **{setting: value}), setting) == value


def test_an_unknown_setting_lists_the_known() -> None:
    with pytest.raises(InputError) as raised:
        TrainConfig(**NEEDED, lr=0.1)
    assert str(raised.value).startswith("lr: got 0.1; there is no such setting; expected one of model, data, out,")
    assert all(name in str(raised.value) for name in TrainConfig.model_fields)


def test_every_fault_is_told() -> None:
    with pytest.raises(InputError) as raised:
        TrainConfig(data="items.jsonl", steps=0, kl="much")
    faults = str(raised.value).split("; ")
    assert faults[0] == "model: has to be given"
    assert faults[1] == "out: has to be given"
    assert [part.split(":")[0] for part in faults if ": got" in part] == ["steps", "kl"]


class TestYaml:
    def test_reads_settings(self, tmp_path: Path) -> None:
        path = written(tmp_path, "model: tiny\ndata: items.jsonl\nout: run\nlearning_rate: 1e-6\nclip: [0.1, 0.3]\n")
        config = TrainConfig.from_yaml(path)
        assert config == TrainConfig(**NEEDED, learning_rate=1e-6, clip=(0.1, 0.3))

    def test_changes_come_first(self, tmp_path: Path) -> None:
        path = written(tmp_path, "model: tiny\ndata: items.jsonl\nsteps: 3\n")
        config = TrainConfig.from_yaml(str(path), out="run", steps=5)
        assert config == TrainConfig(**NEEDED, steps=5)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("model: tiny\ndata: d\nout: o\nsteps: 0", "steps: got 0; "),
            ("model: tiny\ndata: d\nout: o\nrank: 8", "rank: got 8; there is no such setting"),
            ("model: tiny\ndata: d", "out: has to be given"),
            ("steps: [", "not YAML: "),
            ("- steps", r"got \['steps'\], expected settings by name"),
            ("", "got None, expected settings by name"),
            ("1: 2", "got {1: 2}, expected settings by name"),
        ],
    )
    def test_errors_name_file_and_setting(self, tmp_path: Path, text: str, said: str) -> None:
        with pytest.raises(InputError, match=rf"recipe\.yaml: {said}"):
            TrainConfig.from_yaml(written(tmp_path, text))

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"recipe\.yaml: No such file"):
            TrainConfig.from_yaml(tmp_path / "recipe.yaml")

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(b"model: \xff")
        with pytest.raises(InputError, match=r"recipe\.yaml: not UTF-8"):
            TrainConfig.from_yaml(path)

    def test_nothing_in_it_is_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="not YAML"):
            TrainConfig.from_yaml(written(tmp_path, "model: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("steps=100", ("steps", 100)),
        ("learning_rate=1.0e-5", ("learning_rate", 1e-5)),
        ("clip=[0.1, 0.2]", ("clip", [0.1, 0.2])),
        ("judge={name: openai, model: a=b}", ("judge", {"name": "openai", "model": "a=b"})),
        ("prompt=What is it?", ("prompt", "What is it?")),
    ],
)
def test_parse_setting(text: str, expected: Any) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["steps", "steps 5", "judge={"])
def test_parse_setting_refuses(text: str) -> None:
    with pytest.raises(InputError, match="expected NAME=VALUE" if "=" not in text else "judge: not YAML"):
        parse_setting(text)
