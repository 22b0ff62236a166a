"""Prompts and answers as other tools log them, in OpenAI's chat shape.

They come as lists of role and content, as one text, as OpenAI requests and responses,
and as LangChain's messages in each of its three ways of writing them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracetune.adapters.logs.lines import Answer
from tracetune.adapters.logs.values import dumped, loaded

Message = dict[str, Any]

_ROLES = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "function",
    "HumanMessage": "user",
    "HumanMessageChunk": "user",
    "AIMessage": "assistant",
    "AIMessageChunk": "assistant",
    "SystemMessage": "system",
    "ToolMessage": "tool",
}


def messages_of(value: Any) -> list[Message] | None:
    """A prompt as chat messages; None where there is none that can be read.

    Example:
        >>> messages_of("2 + 2?")
        [{'role': 'user', 'content': '2 + 2?'}]
        >>> messages_of({"messages": [["human", "2 + 2?"]]})
        [{'role': 'user', 'content': '2 + 2?'}]
    """
    value = loaded(value)
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping):
        for name in ("messages", "input", "prompts", "prompt"):
            if name in value:
                return messages_of(value[name])
        message = message_of(value)
        return None if message is None else [message]
    if not isinstance(value, list) or not value:
        return None
    # LangChain logs a batch of prompts of which there is always one.
    if len(value) == 1 and isinstance(value[0], list) and not _is_pair(value[0]):
        return messages_of(value[0])
    if all(isinstance(item, str) for item in value):
        return [{"role": "user", "content": item} for item in value]
    messages = [message_of(item) for item in value]
    return None if None in messages else [message for message in messages if message is not None]


def message_of(value: Any) -> Message | None:
    """One chat message; None where the value is none."""
    if _is_pair(value):
        return {"role": _ROLES.get(value[0], value[0]), "content": value[1]}
    if not isinstance(value, Mapping):
        return None
    if "kwargs" in value and isinstance(value.get("id"), list) and value["id"]:  # a serialised constructor
        return _of_fields(value["kwargs"], _ROLES.get(str(value["id"][-1])))
    if "data" in value and value.get("type") in _ROLES:
        return _of_fields(value["data"], _ROLES[value["type"]])
    if "role" in value:
        return _of_fields(value, str(value["role"]))
    if value.get("type") in _ROLES:
        return _of_fields(value, _ROLES[value["type"]])
    return None


def answers_of(value: Any) -> list[Answer]:
    """The choices of an answer; empty where none can be read.

    Example:
        >>> answers_of("4")
        [Answer(message={'role': 'assistant', 'content': '4'}, finish_reason=None)]
    """
    value = loaded(value)
    if isinstance(value, str):
        return [Answer({"role": "assistant", "content": value})]
    if isinstance(value, list):
        return [answer for item in value for answer in answers_of(item)]
    if not isinstance(value, Mapping):
        return []
    if isinstance(value.get("choices"), list):
        return [answer for choice in value["choices"] for answer in _choice(choice)]
    if isinstance(value.get("generations"), list):
        generations = value["generations"]
        nested = generations[0] if generations and isinstance(generations[0], list) else generations
        return [answer for item in nested for answer in _generation(item)]
    message = message_of(value)
    if message is not None:
        return [Answer(message)] if message["role"] == "assistant" else []
    for name in ("messages", "message", "output", "content", "text", "completion"):
        if name in value:
            return answers_of(value[name])
    return []


def _choice(value: Any) -> list[Answer]:
    if not isinstance(value, Mapping):
        return []
    message = message_of(value.get("message"))
    if message is None and isinstance(value.get("text"), str):
        message = {"role": "assistant", "content": value["text"]}
    return [] if message is None else [Answer(message, _text(value.get("finish_reason")))]


def _generation(value: Any) -> list[Answer]:
    """One of LangChain's generations: a message, or a text alone."""
    if not isinstance(value, Mapping):
        return []
    message = message_of(value.get("message"))
    if message is None:
        message = {"role": "assistant", "content": _text(value.get("text")) or ""}
    said = value.get("generation_info") or {}
    return [Answer(message, _text(said.get("finish_reason")) if isinstance(said, Mapping) else None)]


def _of_fields(fields: Any, role: str | None) -> Message | None:
    if not isinstance(fields, Mapping) or role is None:
        return None
    message: Message = {"role": _ROLES.get(role, role), "content": fields.get("content")}
    for name in ("name", "tool_call_id"):
        if isinstance(fields.get(name), str) and fields[name]:
            message[name] = fields[name]
    calls = fields.get("tool_calls")
    if not calls and isinstance(fields.get("additional_kwargs"), Mapping):
        calls = fields["additional_kwargs"].get("tool_calls")
    if isinstance(calls, list) and calls:
        message["tool_calls"] = [_tool_call(call) for call in calls]
    return message


def _tool_call(call: Any) -> Any:
    """A tool call as OpenAI has it; LangChain writes name and arguments without a function around them."""
    if isinstance(call, Mapping) and "function" not in call and "name" in call:
        arguments = call.get("args", call.get("arguments"))
        function = {"name": call["name"], "arguments": arguments if isinstance(arguments, str) else dumped(arguments)}
        return {"id": call.get("id"), "type": "function", "function": function}
    return call


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and value[0] in (*_ROLES, "user", "assistant")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
