"""VLLMJudge with a real vLLM in process, in the environment that `make test-vllm` builds; in_process.py runs there."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from smollm2 import smollm2

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-vllm/bin/python"

pytestmark = pytest.mark.vllm


def run(what: str, folder: Path, *, engine_apart: bool = False) -> dict[str, Any]:
    if not PYTHON.exists():
        pytest.skip("no vLLM here; run `make test-vllm`")
    own = {
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(engine_apart)),
        "VLLM_NO_USAGE_STATS": "1",
    }
    out, log = folder / "out.json", folder / "log.txt"
    command = [PYTHON, ROOT / "tests/engines/in_process.py", what, out, smollm2()]
    with log.open("w") as file:
        status = subprocess.run(
            command, env={**os.environ, **own}, cwd="/", stdout=file, stderr=file, timeout=300, check=False
        ).returncode
    assert status == 0, log.read_text()[-3000:]
    answered: dict[str, Any] = json.loads(out.read_text())
    return answered


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("text", tmp_path_factory.mktemp("text"))


def test_name_and_tasks(done: dict[str, Any]) -> None:
    assert done["name"] == "vllm/smollm2-135m@r1"
    assert done["tasks"] == ["choose", "criticise", "extract", "inquire", "likert", "rate", "support"]


def test_choices_have_the_probabilities_that_transformers_gives_them(done: dict[str, Any]) -> None:
    choice = done["batch"][0]
    assert sum(choice["values"]) == pytest.approx(1)
    assert choice["values"] == pytest.approx(done["by transformers"], abs=0.1)  # bfloat16


def test_structured_replies_are_complete(done: dict[str, Any]) -> None:
    _, _, support, _, rate, extract = done["batch"]
    for reply, count in ((support, 2), (rate, 3)):
        if "missing" in reply:
            assert reply["missing"] == "truncated"
        else:
            assert len(reply["values"]) == count
            assert all(0 <= value <= 1 for value in reply["values"])
            assert reply["raw"].startswith("{")
    assert "missing" in extract or extract["texts"]
    assert any("values" in reply for reply in (support, rate, extract))


def test_what_cannot_be_asked_is_missing_for_itself_alone(done: dict[str, Any]) -> None:
    choice, overlong, _, image, _, _ = done["batch"]
    assert (overlong["missing"], image["missing"]) == ("truncated", "refused")
    assert "2048" in overlong["detail"]
    assert "images=False" in image["detail"]
    hot, fine = done["hot"]
    assert hot["missing"] == "refused"
    assert "temperature" in hot["detail"]
    assert "values" in choice
    assert "values" in fine


def test_usage(done: dict[str, Any]) -> None:
    usage, missing = done["usage"], sum("missing" in reply for reply in done["batch"])
    assert (usage["requests"], usage["calls"], usage["failures"]) == (6, 4, missing)
    assert usage["input_tokens"] > 400
    assert 0 < usage["output_tokens"] <= 3 * 300 + 1
    assert usage["seconds"] > 0


def test_draws_with_the_same_seed_are_the_same(done: dict[str, Any]) -> None:
    first, again = done["draws"]
    assert first == again
    assert all(sorted(reply["values"]) == [0, 0, 1] for reply in first)
    assert len({reply["raw"] for reply in first}) > 1  # eight seeds, three letters about as likely


def test_a_reply_that_is_cut_off(done: dict[str, Any]) -> None:
    assert done["short"][0]["missing"] == "truncated"
    assert "5 tokens" in done["short"][0]["detail"]


def test_a_model_without_eyes_refuses_an_image_and_nothing_else(done: dict[str, Any]) -> None:
    assert done["eyes"][0]["missing"] == "refused"
    assert "values" in done["eyes"][1]


def test_two_judges_on_one_engine_get_their_own_answers(done: dict[str, Any]) -> None:
    assert [len(reply["values"]) for reply in done["at once"]] == [2] * 4 + [3] * 4


def test_the_event_loop_stays_free(done: dict[str, Any]) -> None:
    assert done["ticks"] > 10


def test_an_engine_that_failed_and_works_again(done: dict[str, Any]) -> None:
    assert [reply["missing"] for reply in done["broken"]] == ["server", "server"]
    assert done["left over"] == 0
    assert "values" in done["mended"][0]


def test_components_end_to_end(done: dict[str, Any]) -> None:
    assert done["qa"]["missing"] == 0
    assert all(0 < value < 1 for value in done["qa"]["values"])


def test_an_engine_in_a_process_of_its_own_that_dies(tmp_path: Path) -> None:
    done = run("killed", tmp_path, engine_apart=True)
    choice, overlong = done["alive"]
    assert sum(choice["values"]) == pytest.approx(1)
    assert overlong["missing"] == "truncated"
    assert [reply["missing"] for reply in done["dead"]] == ["server", "server"]
    assert done["failures"] == 3


def test_images(tmp_path: Path) -> None:
    done = run("images", tmp_path)
    white, black, broken, verify, gone = done["batch"]
    assert "verify" in done["tasks"]
    for reply in (white, black):
        assert sum(reply["values"]) == pytest.approx(1)
    assert white["values"] != pytest.approx(black["values"], abs=1e-3)  # the model saw them
    assert (broken["missing"], gone["missing"]) == ("refused", "no_image")
    assert verify.get("missing") in (None, "truncated", "unparseable")  # its weights are random
