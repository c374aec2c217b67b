"""OpenRLHF's remote reward model: the response in what it sends, and the logs that it wants back."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

from capreward.errors import InputError
from capreward.scoring import ScoreTable

END_TOKENS = ("<|im_end|>", "<|endoftext|>", "</s>", "<|eot_id|>")
"""What a policy ends its turn with; no part of a caption."""


def response_of(query: str, prompt: str, end_tokens: Sequence[str] = END_TOKENS) -> str:
    """What follows the prompt in a query, without the tokens that end a turn.

    In a decoded query image tokens stand expanded, so that the prompt as it was sent need not be in it. What is looked for is
    therefore the longest end of the prompt that is made of whole lines and occurs in the query.

    Raises:
        InputError: not even the prompt's last line occurs in the query.
    """
    lines = prompt.split("\n")
    ends = range(len(lines))
    # An end that occurs is the end of no longer one that does not: from some line on all occur.
    first = bisect.bisect_left(ends, True, key=lambda line: "\n".join(lines[line:]) in query)
    end = "\n".join(lines[first:])
    if not end.strip():
        raise InputError(f"query: got {query[:80]!r}, expected a text that goes on from the last line of its prompt")
    start = -1
    for _ in range(prompt.count(end)):  # an earlier turn may end as the last one does
        found = query.find(end, start + 1)
        if found < 0:
            break
        start = found
    start += len(end)
    stop = len(query)
    while True:  # by places, so that a million end tokens are not a million copies
        bare = stop
        while bare > start and query[bare - 1].isspace():
            bare -= 1
        token = next((token for token in end_tokens if token and query.endswith(token, start, bare)), None)
        if token is None:
            return query[start:stop]
        stop = bare - len(token)


def logs_of(table: ScoreTable) -> dict[str, list[float]]:
    """Points and scored of each component and of the total, as `RewardAnswer.extra_logs` says, [B] each.

    OpenRLHF stacks each log over all rollouts and averages it, so every answer has the same ones, all of them numbers.
    """
    columns = {**dict(zip(table.names, table.values.T, strict=True)), "total": table.total()}
    logs = {}
    for name, column in columns.items():
        scored = ~np.isnan(column)
        logs[f"{name}.points"] = np.where(scored, column, 0.0).tolist()
        logs[f"{name}.scored"] = scored.astype(float).tolist()
    return logs
