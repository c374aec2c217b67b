"""Captions of images, by a judge that describes or by a checkpoint of ours."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capreward.curate.stage import Curated, Outcome
from capreward.curate.writing import INSTRUCTION, instructs, prompt_hashes, sees
from capreward.errors import InputError, missing_extra, require_positive
from capreward.judges.base import Judge, Reply, Request, Sampling, Task, Usage, ask_each
from capreward.missing import Missing, Reason
from capreward.records import Item, count_words

if TYPE_CHECKING:
    from capreward.train.policy import Policy, Prompt


class Captions:
    """A stage that writes a caption for every image.

    The caption stands in the item's metadata, as `caption`; nothing else of the item changes, its references least of all:
    `as_references` turns captions into references. A record is a row of a rollout that names its item by id, so
    ``read_rollouts(out / "records", items=read_items(out / "items"))`` reads the captions to be scored or trained on.

    Args:
        describer: who writes; it sees images.
        instruction: what it is asked for.
        sampling: how it draws; with a seed, captions of different seeds are different draws.

    Raises:
        InputError: a describer that cannot describe or sees no images; an empty instruction.
    """

    name = "captions"

    def __init__(self, describer: Judge, *, instruction: str = INSTRUCTION, sampling: Sampling | None = None) -> None:
        self.describer = sees(describer, "Captions", Task.DESCRIBE)
        self.instruction, self.sampling = instructs(instruction, "Captions"), sampling or Sampling()

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Whom it asks."""
        return (self.describer,)

    def describe(self) -> Mapping[str, Any]:
        """JSON-ready settings, and the hash of the prompt, of which a checkpoint has its own."""
        sampling = {"temperature": self.sampling.temperature, "seed": self.sampling.seed}
        own = self.describer.name.startswith("checkpoint/")
        return {
            "describer": self.describer.name,
            "instruction": self.instruction,
            "sampling": sampling,
            "prompts": prompt_hashes(*([] if own else [Task.DESCRIBE])),
        }

    async def curate(self, items: Sequence[Item]) -> list[Outcome]:
        """One outcome for each item."""
        batches = [[self._request(item.image)] if item.image is not None else [] for item in items]
        replies = await ask_each(self.describer, batches)
        return [self._outcome(item, reply) for item, reply in zip(items, replies, strict=True)]

    def count(self, record: Mapping[str, Any]) -> Mapping[str, int]:
        """Captions and their words."""
        return {"captions": 1, "words": record["metadata"]["words"]}

    def _request(self, image: Path | bytes) -> Request:
        return Request(Task.DESCRIBE, "", question=self.instruction, images=(image,), sampling=self.sampling)

    def _outcome(self, item: Item, replies: Sequence[Reply | Missing]) -> Outcome:
        if not replies:
            return Missing(Reason.NO_IMAGE, "the item has no image to be described")
        [reply] = replies
        if isinstance(reply, Missing):
            return reply
        caption = reply.texts[0].strip() if len(reply.texts) == 1 else ""
        if not any(character.isalnum() for character in caption):
            return Missing(Reason.UNPARSEABLE, f"expected one caption, got {reply.texts!r:.200}")
        about = {"describer": self.describer.name, "words": count_words(caption)}
        made = item.model_copy(update={"metadata": {**item.metadata, "caption": caption}})
        return Curated(made, {"item": item.id, "caption": caption, "metadata": about})


def as_references(items: Iterable[Item]) -> list[Item]:
    """Items that `Captions` made, the caption of each as its only reference; those without a caption as they are.

    What was extracted from other references is dropped, since it is not of this one.
    """
    made = []
    for item in items:
        caption = item.metadata.get("caption")
        if caption is not None:
            rest = {name: value for name, value in item.metadata.items() if name != "caption"}
            item = item.model_copy(update={"references": (caption,), "reference_units": (), "metadata": rest})
        made.append(item)
    return made


class CheckpointDescriber:
    """A judge that describes images with a vision-language model in this process: what `Trainer` saved, or any of transformers.

    A caption depends on the request alone, never on what is described beside it, but for the rounding of a batch.

    Args:
        path: folder of the checkpoint, with its processor.
        max_tokens: of a caption; a longer one is Missing(truncated).
        batch: images that are described together.

    Raises:
        InputError: no such folder; no vision-language model in it; a number that is not above 0.
        MissingExtraError: without the extra `train`.
    """

    images = True
    tasks = frozenset({Task.DESCRIBE})

    def __init__(self, path: str | Path, *, max_tokens: int = 512, batch: int = 8) -> None:
        require_positive("CheckpointDescriber", max_tokens=max_tokens, batch=batch)
        self.path, self.max_tokens, self.batch = Path(path), max_tokens, batch
        if not self.path.is_dir():
            raise InputError(f"CheckpointDescriber: {path}: no such folder")
        self.name = f"checkpoint/{self.path.resolve().name}@{_weights(self.path)}+{max_tokens}"
        self.usage = Usage()
        self._policies: dict[str, Policy] = {}
        self._lock = threading.Lock()
        self._policy(INSTRUCTION)  # what cannot be loaded should show here

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request."""
        return await asyncio.to_thread(self._ask, list(requests))

    def _policy(self, instruction: str) -> Policy:
        """The model with this instruction in its prompts."""
        try:
            import torch

            from capreward.train.policy import Policy
        except ImportError as error:
            raise missing_extra("CheckpointDescriber", "train", error) from error
        if not self._policies:
            policy = Policy.load(self.path, instruction=instruction)
            policy.model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            self._policies[instruction] = policy
        if instruction not in self._policies:
            first = next(iter(self._policies.values()))
            self._policies[instruction] = Policy(first.model, first.processor, instruction=instruction)
        return self._policies[instruction]

    def _ask(self, requests: list[Request]) -> list[Reply | Missing]:
        replies: dict[int, Reply | Missing] = {}
        with self._lock:
            start = time.perf_counter()
            prompts: dict[int, Prompt] = {}
            for n, request in enumerate(requests):
                if request.task is not Task.DESCRIBE or len(request.images) != 1:
                    raise InputError(f"{self.name}: expected requests to describe one image, got {request.task}")
                try:
                    prompts[n] = self._policy(request.question).prompt(Item(id="image", image=request.images[0]))
                except ValueError as error:  # an image that cannot be read, or that the processor does not take
                    replies[n] = Missing(Reason.NO_IMAGE, str(error))
                if len(prompts) == self.batch:
                    replies |= self._described(requests, prompts)
                    prompts = {}
            if prompts:
                replies |= self._described(requests, prompts)
            self.usage.requests += len(requests)
            self.usage.failures += sum(isinstance(reply, Missing) for reply in replies.values())
            self.usage.seconds += time.perf_counter() - start
        return [replies[n] for n in range(len(requests))]

    def _described(self, requests: Sequence[Request], prompts: Mapping[int, Prompt]) -> dict[int, Reply | Missing]:
        import torch

        from capreward.train.rollout import generate

        policy = next(iter(self._policies.values()))
        kind = policy.model.device.type
        replies: dict[int, Reply | Missing] = {}
        for temperature in {requests[n].sampling.temperature for n in prompts}:
            some = [n for n in prompts if requests[n].sampling.temperature == temperature]
            uniforms = torch.tensor([self._uniforms(requests[n]) for n in some], dtype=torch.float64)
            with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
                made = generate(
                    policy.model,
                    [prompts[n] for n in some],
                    uniforms[:, None],
                    ends=policy.ends,
                    temperature=temperature or 1e-4,  # so close to the likeliest token that no other is drawn
                    unspeakable=policy.unspeakable,
                )
            for n, [tokens] in zip(some, made, strict=True):
                caption = policy.caption(tokens)
                self.usage.calls += 1
                self.usage.input_tokens += len(prompts[n].tokens)
                self.usage.output_tokens += len(tokens)
                whole = tokens[-1] in policy.ends
                detail = f"{self.name}: no end after {self.max_tokens} tokens"
                replies[n] = Reply(texts=(caption,)) if whole else Missing(Reason.TRUNCATED, detail, caption)
        return replies

    def _uniforms(self, request: Request) -> list[float]:
        """What decides the draws of a request."""
        chance = random.Random(request.key(self.name))
        return [chance.random() for _ in range(self.max_tokens)]


def _weights(folder: Path) -> str:
    """12 digits that change with the model: the content of small files, size and ends of large ones."""
    content = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".jinja", ".txt", ".model"):
            size = path.stat().st_size
            content.update(f"{path.name} {size} ".encode())
            with path.open("rb") as file:
                content.update(file.read(2**26))
                if size > 2**27:
                    file.seek(-(2**26), 2)
                content.update(file.read(2**26))
    return content.hexdigest()
