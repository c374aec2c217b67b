"""The documentation site, of the repository named."""

import subprocess
import sys
from pathlib import Path

built = subprocess.run(
    [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        f"{sys.argv[1]}/mkdocs.yml",
        "--site-dir",
        Path.cwd() / "site",
    ],
    env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"},
    check=False,
)
assert built.returncode == 0
assert Path("site/index.html").is_file()
