"""Chat messages of a span, from the GenAI conventions' parts to OpenAI's chat shape.

Nearly every message is one text part, and has a short way here; the rest goes through
the tracer's converter, and keeps its original among the span's attributes. Other
instrumentations write parts in their own ways, in attributes and in events: those are
read message by message, so that one that cannot be read costs only itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from tracetune.grouping.conventions.values import Partly, json_list, parts_or_text, writable
from tracetune.tracer.messages import from_genai

_PART_FIELDS = {
    "text": {"type", "content"},
    "tool_call": {"type", "id", "name", "arguments"},
    "tool_call_response": {"type", "id", "response", "result"},
}
# No service gives more to a request.
_MOST_CHOICES = 128
_UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)


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


def foreign_messages(recorded: Any) -> Any:
    """A prompt as other instrumentations write it: a list of messages, as JSON or as a structured value."""
    chat, is_whole, is_cut = [], True, False
    for message in json_list(recorded):
        try:
            chat += [_chat_message(told) for told in _answers_apart(message)]
        except _UNREADABLE:
            is_cut = True
        else:
            is_whole = is_whole and _says_no_more(message)
    if not chat:
        raise ValueError("no message")
    return chat if is_whole and not is_cut else Partly(chat, is_cut)


def foreign_choices(recorded: Any) -> Any:
    """Text and finish reason of each answer in such a list."""
    found: list[tuple[str | None, str | None]] = []
    is_whole, is_cut = True, False
    for message in json_list(recorded):
        try:
            chat = _chat_message(message)
        except _UNREADABLE:
            is_cut = True
            continue
        is_whole = (
            is_whole and chat.keys() == {"role", "content"} and chat["role"] == "assistant" and _says_no_more(message)
        )
        found.append((_text(chat.get("content")), _reason(message.get("finish_reason"))))
    if not found:
        raise ValueError("no message")
    return found if is_whole and not is_cut else Partly(found, is_cut)


def system_message(recorded: Any) -> Any:
    """The system's instructions, which current conventions keep apart: their parts, as one message."""
    parts = json_list(recorded)
    message = {"role": "system", "parts": parts}
    chat = _chat_message(message)
    return chat if _says_no_more(message) else Partly(chat)


def prompt_text(recorded: Any) -> Any:
    """A prompt in one attribute: messages as JSON, or else the text of the only one."""
    if isinstance(recorded, str) and not recorded.lstrip().startswith(("[", "{")):
        return [{"role": "user", "content": recorded}]
    return foreign_messages(recorded)


def completion_text(recorded: Any) -> Any:
    """An answer in one attribute: messages as JSON, or else the only text."""
    if isinstance(recorded, str) and not recorded.lstrip().startswith(("[", "{")):
        return [(recorded, None)]
    return foreign_choices(recorded)


def event_messages(events: list[tuple[str, dict[str, Any]]]) -> Any:
    """A prompt of which each message was an event: `gen_ai.user.message` and its like."""
    chat, is_cut = [], False
    for name, attributes in events:
        try:
            body = _body(attributes)
            role = body.get("role") or name.split(".")[1]
            message: dict[str, Any] = {"role": role, "content": parts_or_text(body.get("content"))}
            if role == "tool" and body.get("id") is not None:
                message["tool_call_id"] = body["id"]
            if body.get("tool_calls"):
                message["tool_calls"] = json_list(body["tool_calls"])
            elif message["content"] is None:
                raise ValueError("a message whose content was not recorded")
            chat.append(writable(message))
        except _UNREADABLE:
            is_cut = True
    if not chat:
        raise ValueError("no message")
    return Partly(chat, is_cut)  # an event is never taken out of its span


def event_choices(events: list[tuple[str, dict[str, Any]]]) -> Any:
    """Text and finish reason of each `gen_ai.choice` event, by their index; one that is missing says nothing."""
    found: dict[int, tuple[str | None, str | None]] = {}
    for place, (_, attributes) in enumerate(events):
        body = _body(attributes)
        message = body.get("message")
        if isinstance(message, str) and message.startswith("{"):
            message = orjson.loads(message)
        if message is None:
            message = body
        content = message.get("content") if isinstance(message, dict) else message
        index = body.get("index")
        if not isinstance(index, int) or not 0 <= index < _MOST_CHOICES:
            index = place
        found.setdefault(index, (_text(content), _reason(body.get("finish_reason"))))
    return Partly([found.get(index, (None, None)) for index in range(max(found) + 1)])


def response_reasons(recorded: Any) -> Any:
    """The finish reasons of an OpenAI response's choices."""
    return [_reason(choice.get("finish_reason")) or "" for choice in json_list(recorded)]


def _chat_message(message: Any) -> dict[str, Any]:
    if "parts" not in message:  # in OpenAI's shape, as some write it under the conventions' name
        if not isinstance(message["role"], str) or not ("content" in message or "tool_calls" in message):
            raise ValueError("not a message")
        return writable({key: value for key, value in message.items() if key != "finish_reason"})  # type: ignore[no-any-return]
    parts = [_part(part) for part in message["parts"]]
    (chat,) = from_genai([{**message, "parts": parts}])
    if not isinstance(chat["role"], str):
        raise TypeError("a role that is no text")
    return writable(chat)  # type: ignore[no-any-return]


def _answers_apart(message: Any) -> list[Any]:
    """A message of its own for each tool's answer, as OpenAI has them; some put them into one of the user's."""
    parts = message.get("parts", ())
    answers = [part for part in parts if part["type"] == "tool_call_response"]
    if not answers or (len(parts) == 1 and message["role"] == "tool"):
        return [message]
    rest = [part for part in parts if part["type"] != "tool_call_response"]
    apart = [{"role": "tool", "parts": [answer]} for answer in answers]
    return [*apart, {**message, "parts": rest}] if rest else apart


def _part(part: Any) -> dict[str, Any]:
    """A part with a tool's answer as text under `response`, where an older version has `result`."""
    if part["type"] == "text" and not isinstance(part.get("content", ""), str):
        raise TypeError("a text part without a text")
    if part["type"] != "tool_call_response":
        return dict(part)
    answer = part["response"] if "response" in part else part.get("result")
    if answer is not None and not isinstance(answer, str):
        answer = orjson.dumps(answer).decode()
    return {**part, "response": answer}


def _says_no_more(message: Mapping[str, Any]) -> bool:
    """Whether the chat shape holds all that a message says."""
    if "parts" not in message:
        return True
    if not message.keys() <= {"role", "parts", "name", "finish_reason"}:
        return False
    kinds = [part["type"] for part in message["parts"]]
    return (
        all(part.keys() <= _PART_FIELDS.get(part["type"], ()) for part in message["parts"])
        and kinds.count("text") <= 1
        and ("tool_call_response" not in kinds or len(kinds) == 1)
    )


def _body(attributes: dict[str, Any]) -> dict[str, Any]:
    """What an event says: in its attributes, or as JSON in one of them."""
    recorded = attributes.get("gen_ai.event.content")
    body = orjson.loads(recorded) if isinstance(recorded, str) else recorded
    return body if isinstance(body, dict) else attributes


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def _reason(reason: Any) -> str | None:
    return reason if isinstance(reason, str) and reason else None
