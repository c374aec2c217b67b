"""What can be said of captions without a judge: length, repetition, distinct n-grams, talk about the caption or the viewer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from capreward.errors import InputError
from capreward.judges.lite import repeated_share
from capreward.records import count_words, words

_CAPTION = r"(?:caption|description|summary|answer|response|paragraph)"
_VIEWER = r"(?:viewers?|observers?|onlookers?|audience|readers?|eyes?|attention|gaze|imagination)"
_VIEWED = r"(?:attention|eyes?|gaze|focus|imagination|curiosity|interest|mind)"
_LURES = (
    r"(?:invit|draw|attract|catch|captur|lead|guid|direct|engag|captivat|encourag|remind|transport|immers|allow|leav|"
    r"mak|giv|challeng|inspir)(?:e|es|ed|s|ing|ting)?"
)

META = {
    "caption": rf"\b(?:this|my|our|the (?:above|following|given|present)) {_CAPTION}\b"
    rf"|\bthe {_CAPTION} (?:is|gives|provides|covers|captures|mentions|describes|includes|leaves|accurately|above|below is)\b",
    "speaker": r"\b(?:i|we) (?:can|can't|cannot|could|would|will|am|see|think|believe|hope|notice|know|am unable|need to)\b"
    r"|\blet me\b|\bas an ai\b|\blanguage model\b|\bi'm\b|\bi'll\b",
    "opening": r"^\W*(?:sure|certainly|of course|okay)\b[,!.]"
    rf"|\bhere(?: is|'s| are) (?:(?:a|an|the|my|your) )?(?:\w+ ){{0,3}}{_CAPTION}\b",
    "viewer": rf"\b{_LURES} (?:in )?(?:the |a |one's |its |our |your )?{_VIEWER}\b"
    rf"|\b(?:viewer|observer|onlooker|audience)(?:'s|s'|s)? {_VIEWED}\b|\byour (?:attention|eyes?|gaze|imagination)\b",
    "address": r"\b(?:you|one) (?:can|could|might|may|will|would) (?:also |even |almost |clearly )?"
    r"(?:see|notice|observe|imagine|find|feel|sense|hear|tell)\b|\bif you look\b|\bas you can see\b|\bnote that\b",
}
"""Kind -> pattern of a phrase that is about the caption, its writer or its reader, and not about the image.

`caption`: "this description covers"; `speaker`: "I can see", "as an AI"; `opening`: "Sure! Here is a caption"; `viewer`: "draws
the eye", "the viewer's attention"; `address`: "you can see". Matched regardless of case, in English alone. Left out on purpose,
since they say where something is or what the image holds: "facing the viewer", "the caption under the photo reads",
"the image shows", "looks at you".
"""
_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in META.items()}


def length(caption: str) -> int:
    """Number of words, as everywhere in capreward (`records.count_words`)."""
    return count_words(caption)


def repetition(caption: str, n: int = 4) -> float:
    """Share of the caption's n-grams of words that stood in it before, in [0, 1]; 0 for fewer than n words.

    One minus the share of distinct n-grams within the caption; the lite judge's clarity is made of it.

    Raises:
        InputError: n below 1.
    """
    return repeated_share(caption, _at_least_one(n))


def distinct(captions: Sequence[str], n: int = 2) -> float:
    """Distinct-n (Li et al., arXiv 1510.03055): distinct n-grams of words over all n-grams, of all captions together, in (0, 1].

    Regardless of case. NaN where there is no n-gram. It falls as text grows, so compare captioners only on the same items, and
    mind their lengths.

    Raises:
        InputError: n below 1.
    """
    n = _at_least_one(n)
    seen: set[tuple[str, ...]] = set()
    total = 0
    for caption in captions:
        found = words(caption.lower())
        grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else float("nan")


def meta_commentary(caption: str) -> list[str]:
    """The phrases of a caption that talk about the caption or the viewer, in order: what matches the patterns of `META`.

    Matches of one pattern do not overlap: "lead the viewer's gaze" counts once.

    BalCapRL (arXiv 2605.07394) reports such talk where pointability is not rewarded; the list of phrases is ours.
    The meta-commentary rate of a set is the share of its captions that have any (`has_meta_commentary`).
    """
    plain = caption.replace("’", "'")
    found = [(match.start(), match[0]) for pattern in _PATTERNS.values() for match in pattern.finditer(plain)]
    return [phrase for _, phrase in sorted(found)]


def has_meta_commentary(caption: str) -> bool:
    """Whether `meta_commentary` finds anything."""
    plain = caption.replace("’", "'")
    return any(pattern.search(plain) for pattern in _PATTERNS.values())


def _at_least_one(n: int) -> int:
    if n < 1:
        raise InputError(f"n: got {n}, expected a number >= 1")
    return n
