"""What the models of the pages answer: a function of the prompt, behind an OpenAI-compatible server on loopback."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

from judges.chat_server import Body, completion

QUESTIONS = {"What colour is the circle?": ["red", "blue", "green", "white"]}
"""That the writer asks, the right option first."""


def answer(body: Body) -> Any:
    """A sensible reply to any task. The model called ...3b leaves out what the others say."""
    content = body["messages"][-1]["content"]
    prompt = content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")
    schema = body.get("response_format", {}).get("json_schema", {})
    match schema.get("name", "choice" if body["max_tokens"] == 4 else "describe"):
        case "describe":
            seen = "A circle." if body["model"].endswith("3b") else "A red circle above a blue square."
            said = f"{seen} Picture {zlib.crc32(json.dumps(content).encode())}, says {body['model']}."
        case "extract":
            said = json.dumps({"statements": ["There is a circle.", "The circle is red."]})
        case "inquire":
            asked = [{"kind": "attribute", "question": q, "options": o, "answer": o[0]} for q, o in QUESTIONS.items()]
            said = json.dumps({"questions": asked})
        case "criticise":
            criterion = {"criterion": "Says that the circle is red.", "severity": "critical", "teachers": [1, 2]}
            said = json.dumps({"criteria": [criterion]})
        case "rate" | "likert":
            said = json.dumps({"ratings": _each(schema, rating=4)})
        case "verify":
            said = json.dumps({"verdicts": _each(schema, true=True, pointable=True)})
        case "support":
            said = json.dumps({"verdicts": _each(schema, holds="red" in prompt.partition("Statements:")[0])})
        case _:
            right = {options[0] for options in QUESTIONS.values()}
            options = dict(re.findall(r"^([A-Z])\. (.+)$", prompt, re.MULTILINE))
            sees = not isinstance(content, str)
            said = next((letter for letter, option in options.items() if sees and option in right), "A")
    return completion(said)


def _each(schema: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """One object an option."""
    (listed,) = schema["schema"]["properties"].values()
    return [{"number": number, "why": "it says so", **fields} for number in range(1, listed["minItems"] + 1)]
