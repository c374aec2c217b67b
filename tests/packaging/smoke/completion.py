"""Scripts for shells."""

import subprocess

for shell in ("bash", "zsh", "fish"):
    done = subprocess.run(["capreward", "completion", shell], capture_output=True, text=True, check=True)
    assert "capreward" in done.stdout
    assert "evaluate" in done.stdout
