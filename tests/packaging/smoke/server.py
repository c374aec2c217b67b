"""A server on loopback, and the client."""

import threading
import time

import uvicorn

from capreward import Item, RewardSuite, Rollout, Score
from capreward.adapters.client import Client
from capreward.adapters.server import make_app


class Length:
    name = "length"

    async def score(self, rollouts):
        return [Score(min(1.0, len(rollout.caption) / 20)) for rollout in rollouts]


suite = RewardSuite({"length": Length()})
server = uvicorn.Server(uvicorn.Config(make_app(suite), port=0, log_config=None))
thread = threading.Thread(target=server.run, daemon=True)
thread.start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]
rollouts = [Rollout(item=Item(id="cup"), caption=caption, id=caption) for caption in ("A cup.", "The cup.")]
answer = Client(f"http://127.0.0.1:{port}").score(rollouts)
assert [one.scores["length"].value for one in answer.rollouts] == [0.3, 0.4]
assert answer.rollouts[1].advantage > 0 > answer.rollouts[0].advantage
server.should_exit = True
thread.join(20)
