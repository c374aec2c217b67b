"""A real vLLM that serves SmolLM2 on loopback, from an environment of its own (`make test-vllm`)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from smollm2 import smollm2

PYTHON = Path(__file__).parents[2] / ".venv-vllm/bin/python"


class Server:
    """vLLM as a process that can be killed and started again on the same port; it calls its model smollm2.

    Args:
        model: folder of it.
        options: of the server, beside its own or in place of them.
    """

    def __init__(self, model: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.options = model, options
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(self.port)]
        # only whole blocks are cached, so small ones share more of a prompt
        command += ["--max-model-len", "2048", "--enforce-eager", "--block-size", "32", *self.options]
        own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **own},
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError(f"vLLM ended with status {self.process.returncode} while starting")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1)
                return
            except OSError:
                time.sleep(1)
        raise RuntimeError("vLLM did not come up within 5 minutes")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answered(self) -> int:
        """Requests that it has brought to an end, by its own count."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:request_success_total{"))


def started(*options: str) -> Iterator[Server]:
    """For fixtures: a server of SmolLM2, until the fixture ends."""
    if not PYTHON.exists():
        pytest.skip("no vLLM here; run `make test-vllm`")
    server = Server(smollm2(), *options)
    yield server
    server.kill()
