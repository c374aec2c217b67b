"""OpenAIJudge against a server on loopback that answers every question with B."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from capreward import Cached, Item, Limited, OpenAIJudge, QAUtility, Question, Retried, RewardSuite, Rollout


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        top = {
            "token": "B",
            "logprob": 0.0,
            "bytes": None,
            "top_logprobs": [{"token": "B", "logprob": 0.0, "bytes": None}],
        }
        message = {"role": "assistant", "content": "B"}
        choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": [top]}}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
judge = Cached(Retried(Limited(OpenAIJudge("m", base_url=url, api_key="none"), 2)), "answers.sqlite")
question = Question(text="What colour is the cup?", options=("white", "blue"), answer=1)
suite = RewardSuite({"qa": QAUtility(judge, score="probability", shuffle=False)})
table = suite.score([Rollout(item=Item(id="cup", questions=(question,)), caption="A cup.")])
assert table.values.tolist() == [[1.0]], table.missing
