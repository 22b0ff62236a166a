"""OTLP documents without the secrets in them, whoever wrote them.

What an attribute is called counts as a field's name does. A span or a record whose prompt or
answer was changed says so, in an attribute of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tracetune.redaction.names import is_secret
from tracetune.redaction.shapes import REDACTED
from tracetune.redaction.texts import redacted_repr
from tracetune.redaction.values import redacted_value

# Attributes and events with these in their names hold what a model was asked or answered, in whatever convention.
_MESSAGE_WORDS = ("message", "prompt", "completion", "choice", "operation.details", "input.value", "output.value")


def holds_message(name: str) -> bool:
    """Whether an attribute or an event of this name holds a prompt or an answer.

    Example:
        >>> holds_message("llm.input_messages.0.message.content"), holds_message("http.url")
        (True, False)
    """
    return any(word in name for word in _MESSAGE_WORDS)


def redacted_attribute(name: str, value: Any) -> Any:
    """The value of an attribute without its secrets; the very same object where it has none.

    Example:
        >>> redacted_attribute("http.request.header.authorization", ["Basic YW5u"])
        '[redacted]'
    """
    if is_secret(name) and value is not None and type(value) is not bool:
        return REDACTED
    if isinstance(value, str) and name.startswith("exception."):
        return redacted_repr(value)
    # Of a message only what looks like a secret is replaced, as in our own spans.
    return redacted_value(value, names=not holds_message(name))


def redact_document(document: Any, mark: str) -> bool:
    """Take the secrets out of an OTLP/JSON document, in place; gives whether there were any.

    Args:
        document: with spans, log records or both; what has another form is left alone.
        mark: the attribute that names the attributes and events of a span, or of a record, whose messages changed.
    """
    changed = False
    for resource in _parts(document, "resourceSpans", "resourceLogs"):
        changed |= _redact_attributes(resource.get("resource"), [])
        for scope in _parts(resource, "scopeSpans", "scopeLogs"):
            changed |= _redact_attributes(scope.get("scope"), [])
            for item in _parts(scope, "spans", "logRecords"):
                changed |= _redact_item(item, mark)
    return changed


def _redact_item(item: dict[str, Any], mark: str) -> bool:
    messages: list[str] = []
    changed = _redact_attributes(item, messages)
    for event in _parts(item, "events"):
        in_event: list[str] = []
        changed |= _redact_attributes(event, in_event)
        name = event.get("name")
        if in_event and isinstance(name, str):
            messages.append(name)
    for link in _parts(item, "links"):
        changed |= _redact_attributes(link, [])
    changed |= _redact_field(item, "name", redacted_value)
    status = item.get("status")
    if isinstance(status, dict):
        changed |= _redact_field(status, "message", redacted_repr)
    body = item.get("body")
    if isinstance(body, dict) and _redact_any(body, "body", names=False):
        changed = True
        messages.append(str(item.get("eventName") or "body"))
    if messages:
        known = item.setdefault("attributes", [])
        known.append({"key": mark, "value": {"arrayValue": {"values": [{"stringValue": name} for name in messages]}}})
    return changed


def _redact_attributes(item: Any, messages: list[str]) -> bool:
    changed = False
    holds_messages = isinstance(item, dict) and holds_message(str(item.get("name") or item.get("eventName") or ""))
    for attribute in _parts(item, "attributes"):
        key, value = attribute.get("key"), attribute.get("value")
        if not (isinstance(key, str) and isinstance(value, dict)):
            continue
        if _redact_any(value, key, names=not (holds_messages or holds_message(key))):
            changed = True
            if (holds_messages or holds_message(key)) and not is_secret(key):
                messages.append(key)
    return changed


def _redact_any(value: dict[str, Any], name: str, *, names: bool) -> bool:
    """Take the secrets out of a value of OTLP, in place."""
    if is_secret(name) and "boolValue" not in value and value:
        known = value == {"stringValue": REDACTED}
        value.clear()
        value["stringValue"] = REDACTED
        return not known
    text = value.get("stringValue")
    if isinstance(text, str):
        kept = redacted_repr(text) if name.startswith("exception.") else redacted_value(text, names=names)
        value["stringValue"] = kept
        return bool(kept != text)
    changed = False
    for part in _parts(value.get("arrayValue"), "values"):
        changed |= _redact_any(part, "", names=names)
    for part in _parts(value.get("kvlistValue"), "values"):
        inner = part.get("value")
        if isinstance(inner, dict):
            changed |= _redact_any(inner, str(part.get("key") or ""), names=names)
    return changed


def _redact_field(item: dict[str, Any], field: str, redacted: Any) -> bool:
    text = item.get(field)
    if not isinstance(text, str):
        return False
    item[field] = redacted(text)
    return bool(item[field] != text)


def _parts(item: Any, *fields: str) -> Iterator[dict[str, Any]]:
    """The objects in some lists of an object, as far as there are any."""
    if isinstance(item, Mapping):
        for field in fields:
            parts = item.get(field)
            if isinstance(parts, list):
                yield from (part for part in parts if isinstance(part, dict))
