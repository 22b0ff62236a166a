"""Chat messages between OpenAI's shape and the parts of OpenTelemetry's GenAI conventions.

The store keeps prompts in OpenAI's chat shape, the spans carry the conventions'. What
the conventions have no word for (lists of contents, refusals, audio) travels beside the
parts, under `openai`, so that nothing is lost on the way there and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

_VERBATIM = "openai"


def to_genai(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chat messages as the conventions write them.

    Example:
        >>> to_genai([{"role": "user", "content": "2 + 2?"}])
        [{'role': 'user', 'parts': [{'type': 'text', 'content': '2 + 2?'}]}]
    """
    return [_to_parts(message) for message in messages]


def from_genai(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chat messages as OpenAI writes them; the inverse of `to_genai`.

    Example:
        >>> from_genai([{"role": "user", "parts": [{"type": "text", "content": "2 + 2?"}]}])
        [{'role': 'user', 'content': '2 + 2?'}]
    """
    return [_from_parts(message) for message in messages]


def _to_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    content, role = message.get("content"), message.get("role", "")
    parts: list[dict[str, Any]] = []
    if role == "tool":
        parts.append({"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content})
    elif isinstance(content, str):
        parts.append({"type": "text", "content": content})
    elif isinstance(content, list):
        parts.extend({"type": "text", "content": text} for item in content if (text := _text_of(item)) is not None)
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        parts.extend(_tool_call(call) for call in calls if isinstance(call, Mapping))
    converted: dict[str, Any] = {"role": role, "parts": parts}
    if "name" in message:
        converted["name"] = message["name"]
    if _from_parts(converted) != message:
        converted[_VERBATIM] = dict(message)
    return converted


def _from_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    verbatim = message.get(_VERBATIM)
    if isinstance(verbatim, Mapping):
        return dict(verbatim)
    chat: dict[str, Any] = {"role": message.get("role", "")}
    texts, calls, others = [], [], []
    for part in message.get("parts", ()):
        kind = part.get("type")
        if kind == "text":
            texts.append(part.get("content") or "")
        elif kind == "tool_call":
            arguments = part.get("arguments")
            if isinstance(arguments, Mapping):  # as other instrumentations have it
                arguments = orjson.dumps(arguments).decode()
            function = {"name": part.get("name"), "arguments": arguments}
            calls.append({"id": part.get("id"), "type": "function", "function": function})
        elif kind == "tool_call_response":
            chat["tool_call_id"] = part.get("id")
            chat["content"] = part.get("response")
        else:
            others.append(dict(part))
    if others:  # another instrumentation's; kept as it came
        chat["content"] = [{"type": "text", "text": text} for text in texts] + others
    elif "content" not in chat:
        chat["content"] = "".join(texts) if texts else None
    if calls:
        chat["tool_calls"] = calls
    if "name" in message:
        chat["name"] = message["name"]
    return chat


def _text_of(item: Any) -> str | None:
    text = item.get("text") if isinstance(item, Mapping) and item.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else {}
    return {
        "type": "tool_call",
        "id": call.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }
