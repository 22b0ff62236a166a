"""Messages that an instrumentation wrote flat, one attribute for each field, in OpenAI's chat shape.

OpenInference and traceloop number messages, tool calls and contents inside attribute
names (`llm.input_messages.0.message.role`). Numbers need not be without gaps: messages
stand in the order of their numbers, and a prompt with a gap is marked as cut.
"""

from __future__ import annotations

import re
from typing import Any

from tracetune.grouping.conventions.values import Partly, parts_or_text

Flat = dict[int, dict[str, Any]]
Choice = tuple[str | None, str | None]

_OPENINFERENCE = "message."
_TOOL_CALL = re.compile(r"tool_calls\.(0|[1-9][0-9]{0,8})\.(?:tool_call\.)?(id|(?:function\.)?(?:name|arguments))")
_CONTENT = re.compile(r"contents\.(0|[1-9][0-9]{0,8})\.message_content\.(type|text|image\.image\.url)")
_FIELDS = ("role", "name", "tool_call_id", "finish_reason")


def flat_messages(flat: Flat) -> Any:
    """A prompt that was written flat, by OpenInference or by traceloop."""
    read = [_message(flat[index], "user") for index in sorted(flat)]
    chat = [message for message, _ in read if message]
    if not chat:
        raise ValueError("no message")
    is_cut = sorted(flat) != list(range(len(chat)))
    return Partly(chat, is_cut) if is_cut or not all(is_whole for _, is_whole in read) else chat


def flat_choices(flat: Flat) -> Any:
    """Text and finish reason of each answer that was written flat."""
    read = [_message(flat[index], "assistant") for index in sorted(flat)]
    choices = [(_text_of(message), message.get("finish_reason")) for message, _ in read if message]
    if not choices:
        raise ValueError("no message")
    is_plain = all(is_whole and _is_plain_answer(message) for message, is_whole in read)
    is_cut = sorted(flat) != list(range(len(choices)))
    return choices if is_plain and not is_cut else Partly(choices, is_cut)


def flat_prompt(flat: Flat) -> Any:
    """Prompts of a text completion (`llm.prompts.N.prompt.text`), as a user's messages."""
    prompts = _texts(flat, "prompt.text")
    return [{"role": "user", "content": prompt} for prompt in prompts]


def flat_completion(flat: Flat) -> Any:
    """Answers of a text completion (`llm.choices.N.completion.text`)."""
    return [(completion, None) for completion in _texts(flat, "completion.text")]


def _texts(flat: Flat, name: str) -> list[str]:
    found = [flat[index].get(name) for index in sorted(flat) if len(flat[index]) == 1]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(flat):
        raise ValueError("not texts alone")
    return texts


def _is_plain_answer(message: dict[str, Any]) -> bool:
    """Whether text and finish reason are all that an answer says."""
    is_known = message.keys() <= {"role", "content", "finish_reason"}
    return is_known and message.get("role") == "assistant" and not isinstance(message["content"], list)


def _message(fields: dict[str, Any], role: str) -> tuple[dict[str, Any], bool]:
    """One message, of that role if it names none, and whether it says all that its attributes do."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    contents: dict[int, dict[str, Any]] = {}
    is_whole = True
    for name, value in fields.items():
        name = name.removeprefix(_OPENINFERENCE)
        is_whole = is_whole and name not in message
        if name in _FIELDS and isinstance(value, str):
            message[name] = value
        elif name == "content" and (value is None or isinstance(value, str | list)):
            message["content"] = parts_or_text(value)
        elif match := _TOOL_CALL.fullmatch(name):
            calls.setdefault(int(match[1]), {})[match[2].removeprefix("function.")] = value
        elif (match := _CONTENT.fullmatch(name)) and isinstance(value, str):
            contents.setdefault(int(match[1]), {})[match[2]] = value
        else:
            is_whole = False
    is_whole = is_whole and not (contents and "content" in message)
    if contents and "content" not in message:
        message["content"] = [_part(contents[index]) for index in sorted(contents)]
    if calls:
        message["tool_calls"] = [_tool_call(calls[index]) for index in sorted(calls)]
    if message:
        message = {"role": message.pop("role", "assistant" if calls else role), "content": None, **message}
    return message, is_whole


def _part(fields: dict[str, Any]) -> dict[str, Any]:
    if "image.image.url" in fields:
        return {"type": "image_url", "image_url": {"url": fields["image.image.url"]}}
    return {"type": fields.get("type", "text"), "text": fields.get("text")}


def _tool_call(fields: dict[str, Any]) -> dict[str, Any]:
    function = {"name": fields.get("name"), "arguments": fields.get("arguments")}
    return {"id": fields.get("id"), "type": "function", "function": function}


def _text_of(message: dict[str, Any]) -> str | None:
    content = message["content"]
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if isinstance(part.get("text"), str)) or None
    return content if isinstance(content, str) else None
