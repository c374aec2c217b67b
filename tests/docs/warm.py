"""Commands in forks of one process that has imported what is heavy: most blocks run a command, and each would import it anew.

`python -m docs.warm SOCKET` serves once SOCKET exists; CLIENT is what stands on PATH under each command's name, and passes on
arguments, folder, environment and the three streams.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["WARM_SOCKET"])
    call = [os.path.basename(sys.argv[0]), sys.argv[1:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [json.dumps(call).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or 1))
"""


def install(folder: Path, names: list[str]) -> None:
    """Puts the client into a folder under each name."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(CLIENT.format(python=sys.executable))
        (folder / name).chmod(0o755)


def serve(path: str) -> None:
    import accelerate  # noqa: F401
    import openai  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch
    from conftest import _loopback_only
    from docs.commands import COMMANDS
    from matplotlib import pyplot  # noqa: F401

    torch.set_num_threads(1)
    socket.socket.connect = _loopback_only  # type: ignore[method-assign]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.soon")
        server.listen(64)
        os.rename(f"{path}.soon", path)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                if os.fork() == 0:  # so that nobody has to wait for it
                    _run(connection, COMMANDS)
                os._exit(0)
            os.wait()
            connection.close()


def _run(connection: socket.socket, commands: object) -> None:
    status = 1
    try:
        message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        name, arguments, folder, environment = json.loads(message)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        status = commands[name](arguments) or 0  # type: ignore[index]
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001  whatever it is, the client hears of it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(str(status).encode())
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
