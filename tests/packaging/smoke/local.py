"""LocalJudge on a tiny random model that sees, and exact log-probs through a shared prefix."""

import asyncio
import sys

import torch

from capreward import LocalJudge, Missing, shapes
from capreward.judges import Request, Task
from capreward.prefix import completion_logprobs

sys.path.append(f"{sys.argv[1]}/tests")
from tiny import llava

model, processor = llava()
judge = LocalJudge(model, processor)
image = shapes.draw(shapes.scene(0))
asked = [
    Request(Task.SUPPORT, "a red circle", ("a red circle", "a blue square")),
    Request(Task.VERIFY, "", ("a red circle",), images=(image,)),
]
for reply, request in zip(asyncio.run(judge.ask(asked)), asked, strict=True):
    assert not isinstance(reply, Missing), reply
    assert len(reply.values) == len(request.options)

prompt, red = (processor.tokenizer(text)["input_ids"] for text in ("a red circle", "red"))
logprobs, entropies = completion_logprobs(model, prompt, [prompt, red])
assert logprobs.shape == entropies.shape == (2, len(prompt))
assert torch.isfinite(logprobs).all()
assert (logprobs[0] < 0).all()
