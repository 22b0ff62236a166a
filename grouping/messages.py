"""Chat messages of a span, from the GenAI conventions' parts to OpenAI's chat shape.

Nearly every message is one text part, and has a short way here; the rest goes through
the tracer's converter, and keeps its original among the span's attributes.
"""

from __future__ import annotations

from typing import Any

import orjson

from tracetune.tracer.messages import from_genai


def chat_messages(recorded: Any) -> tuple[str | None, bool]:
    """The prompt as JSON in OpenAI's chat shape, and whether the original must be kept beside it."""
    messages = orjson.loads(recorded) if isinstance(recorded, str) else recorded
    try:
        chat = []
        for message in messages:
            (part,) = message["parts"]
            if len(message) != 2 or len(part) != 2 or part["type"] != "text":
                break
            chat.append({"role": message["role"], "content": part["content"]})
        else:
            return orjson.dumps(chat).decode(), False
    except (KeyError, TypeError, ValueError):
        pass  # not a plain text: the long way below
    return orjson.dumps(from_genai(messages)).decode(), True


def choices(recorded: Any, finish_reasons: Any) -> tuple[list[tuple[str | None, str | None]], bool]:
    """Text and finish reason of each choice, and whether the original must be kept beside them."""
    messages = orjson.loads(recorded) if isinstance(recorded, str) else recorded
    reasons = finish_reasons or []
    found: list[tuple[str | None, str | None]] = []
    plain = True
    for index, message in enumerate(messages):
        parts = message["parts"]
        texts = [part["content"] for part in parts if part["type"] == "text"]
        plain = plain and len(texts) == len(parts) == 1
        reason = message.get("finish_reason") or (reasons[index] if index < len(reasons) else None)
        found.append(("".join(texts) if texts else None, reason or None))
    return found, not plain
