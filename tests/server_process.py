"""`capreward serve` as a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Sequence

LIMIT = 300
"""Seconds from start to end; most of them go into imports and a judge's weights."""


def serve_and_interrupt(command: Sequence[str]) -> None:
    """Starts the command on a free port, asks for /health at the address that its log names, and interrupts it.

    Raises:
        AssertionError: it named no address, did not end with status 0, or was killed at LIMIT; with what it said.
        OSError: /health did not answer.
    """
    said = address = ""
    with subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        too_long = threading.Timer(LIMIT, process.kill)  # ends its log too, which is read without a limit
        too_long.start()
        try:
            for line in process.stderr:
                said += line
                if found := re.search(r"; docs at (http://127\.0\.0\.1:\d+)/docs", line):
                    address = found[1]
                    with urllib.request.urlopen(f"{address}/health", timeout=LIMIT) as answer:
                        assert answer.status == 200
                    process.send_signal(signal.SIGINT)
            status = process.wait()
        finally:
            too_long.cancel()
            process.kill()
    assert address, f"status {status}, and no address in its log:\n{said}"
    assert status == 0, f"status {status}:\n{said}"
