"""Requests as token sequences, for judges that read probabilities from a model in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from capreward import prompts
from capreward.errors import InputError
from capreward.judges.base import Request, Task
from capreward.judges.chat import LETTERS, labelled, one_line
from capreward.processing import with_images

if TYPE_CHECKING:
    import torch

SCALES = {
    Task.SUPPORT: ("no", "yes"),
    Task.VERIFY: ("no", "yes"),
    Task.RATE: tuple("12345"),
    Task.LIKERT: tuple("12345"),
}
"""The answers on which a value lies, from 0 to 1 in equal steps."""
LIKERT_REFERENCE = "Reference caption of the same image, to compare with: "
PROMPTS = {
    Task.CHOOSE: "choose",
    Task.SUPPORT: "local_support",
    Task.VERIFY: "local_verify",
    Task.RATE: "local_rate",
    Task.LIKERT: "local_likert",
    Task.EXTRACT: "extract",
}
PROMPTS_HASH = hashlib.sha256("".join(prompts.load(name).hash for name in PROMPTS.values()).encode()).hexdigest()[:8]
"""Changes with any of them: part of the judge's name, and so of every cache key."""
USER = "\ue000user\ue000"
"""Stands for the user's message while a chat template is rendered around it; from a private area of Unicode."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the user's message of a prompt: the only place where special tokens are read."""

    head: list[int]
    """Tokens before it, those of the images among them."""
    tail: list[int]
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the processor made of the images."""


class Encoder:
    """Token sequences of requests, made with one tokenizer or processor.

    Args:
        processing_class: a tokenizer, or the processor of a model that sees.

    Raises:
        InputError: a processor without a chat template.
    """

    def __init__(self, processing_class: Any) -> None:
        self.images = hasattr(processing_class, "image_processor")
        """Whether it takes images."""
        self.tokenizer: Any = processing_class.tokenizer if self.images else processing_class
        self._processor: Any = processing_class
        self._template: str | None = processing_class.chat_template or self.tokenizer.chat_template
        if self.images and not self._template:
            raise InputError(
                f"{type(processing_class).__name__} has no chat template, which says where images go; set its chat_template"
            )
        self._bos: list[int] = self.tokenizer("").input_ids  # what the tokenizer puts before every plain text
        self._frames: dict[Task, Frame] = {}

    def prompts(self, request: Request, frame: Frame) -> list[list[int]]:
        """Token sequences to be answered: one for each option, or one for all of a choice."""
        prompt = prompts.load(PROMPTS[request.task])
        listed = ["\n".join(labelled(request))] if request.task is Task.CHOOSE else list(request.options) or [""]
        return [[*frame.head, *self.encode(fill(prompt, request, options)), *frame.tail] for options in listed]

    def frame(self, task: Task, images: Sequence[Path | bytes] = ()) -> Frame:
        """Tokens before and after the user's message of a prompt.

        Raises:
            OSError: an image cannot be read.
        """
        system = prompts.load(PROMPTS[task]).system
        if images:
            head, tail = self._rendered(system, len(images))
            tokens, seen = with_images(self._processor, head, images)
            return Frame(tokens, self.encode(tail, trusted=True), seen)
        if task not in self._frames:
            if self._template:
                head, tail = self._rendered(system)
                self._frames[task] = Frame(self.encode(head, trusted=True), self.encode(tail, trusted=True))
            else:
                head_ids = [*self._bos, *self.encode(f"{system}\n\n")]
                self._frames[task] = Frame(head_ids, self.encode("\nAnswer:"))
        return self._frames[task]

    def _rendered(self, system: str, images: int = 0) -> tuple[str, str]:
        """The chat template's text before and after the user's message."""
        user: Any = USER
        if self.images:  # templates of models that see take a message as a list of parts
            user = [*[{"type": "image"}] * images, {"type": "text", "text": USER}]
            system_: Any = [{"type": "text", "text": system}]
        else:
            system_ = system
        head, _, tail = self.tokenizer.apply_chat_template(
            [{"role": "system", "content": system_}, {"role": "user", "content": user}],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Qwen3: answer at once
        ).partition(USER)
        return head, tail

    def continued(self, text: str, question: str, option: str) -> tuple[list[int], int]:
        """Tokens of text, question and option, and where the option begins."""
        before = f"{text}\n\nQuestion: {question}\nAnswer:" if text else f"Question: {question}\nAnswer:"
        head = [*self._bos, *self.encode(before)]
        return [*head, *self.encode(f" {option}")], len(head)

    def encode(self, text: str, *, trusted: bool = False) -> list[int]:
        """Tokens of a text. What spells a special token, such as the end of a turn, is one only in a trusted text."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not trusted).input_ids
        return [int(token) for token in ids]

    def answer_tokens(self, request: Request) -> list[list[int]]:
        """For each answer to the request the tokens that give it: with and without a space before, small or capitalised.

        Raises:
            InputError: the tokenizer has no token for an answer that is that answer's own.
        """
        answers = LETTERS[: len(request.options)] if request.task is Task.CHOOSE else SCALES[request.task]
        tokens: list[list[int]] = []
        for answer in answers:
            spellings = {space + word for space in ("", " ") for word in (answer, answer.capitalize())}
            encoded = [self.encode(spelling) for spelling in sorted(spellings)]
            tokens.append(sorted({ids[0] for ids in encoded if len(ids) == 1}))
        every = [token for each in tokens for token in each]
        if not all(tokens) or len(set(every)) < len(every):
            raise InputError(f"the tokenizer has no single token of its own for each of {', '.join(answers)}")
        return tokens


def fill(prompt: prompts.Prompt, request: Request, options: str) -> str:
    """The user's part of a prompt. The marks around the text that is judged are a hash of it, so its author cannot write them."""
    question = one_line(request.question) if request.task is Task.CHOOSE else request.question
    if request.task is Task.LIKERT and question:
        question = f"{LIKERT_REFERENCE}{question}"
    # Of the text alone: with the options in it, prompts about one text would share no beginning.
    judged = options if request.task is Task.VERIFY else request.context
    mark = f"text-{hashlib.sha256(judged.encode()).hexdigest()[:8]}"
    return Template(prompt.user).substitute(mark=mark, context=request.context, question=question, options=options)
