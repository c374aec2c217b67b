"""A scripted OpenAI-compatible server on loopback: `answer(body)` decides what each call gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
DROP = object()
"""Close the connection without a word."""


def completion(text: Any, *, finish: str = "stop", top: dict[str, float] | None = None, **message: Any) -> Body:
    """A chat completion; `top` gives the log-probabilities of the first token's alternatives."""
    logprobs = None
    if top is not None:
        alternatives = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top.items()]
        logprobs = {"content": [{**alternatives[0], "top_logprobs": alternatives}]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
        "logprobs": logprobs,
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class ChatServer:
    """What a running server was asked, and where it is."""

    def __init__(self, answer: Callable[[Body], Any]) -> None:
        self.answer = answer
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


@contextmanager
def serving(answer: Callable[[Body], Any], port: int = 0) -> Iterator[ChatServer]:
    """Serves until the block ends. An answer is a completion, (status, body), a text sent as it is, or DROP."""
    state = ChatServer(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append(body)
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            reply = state.answer(body)
            if reply is DROP:
                self.close_connection = True
                return
            status, payload = reply if isinstance(reply, tuple) else (200, reply)
            data = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: Any) -> None:  # clients that gave up waiting
            pass

    server = Server(("127.0.0.1", port), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
