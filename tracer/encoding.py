"""Spans and records as lines of OTLP/JSON, the OpenTelemetry file format.

Every line is one whole document, so a file cut anywhere loses at most its last line. No
secret that redaction knows of gets onto a line: what capture has gone over is taken as it
is, and everything else is gone over here.
The documents are built by hand from the fields of a span: the protobuf classes would
cost more than everything else that a traced call does.

Reference:
    OpenTelemetry protocol file exporter; JSON protobuf encoding of OTLP (hexadecimal
    ids, 64-bit integers as strings, enums as numbers).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from tracetune.redaction import (
    Redacted,
    holds_message,
    redacted_attribute,
    redacted_repr,
    redacted_text,
    redacted_value,
)
from tracetune.tracer import names

# The instrumentation scope of our own spans and records.
SCOPE_NAME = "tracetune"


def span_line(span: ReadableSpan) -> bytes:
    """One ended span as one line, newline included."""
    return _header(span.resource, span.instrumentation_scope) + _dumps(_span(span)) + b"]}]}]}\n"


def record_line(event_name: str, body: Mapping[str, Any], attributes: Mapping[str, Any], time: int) -> bytes:
    """One log record as one line, newline included; the body is one JSON object as a string."""
    kept = redacted_value(body, names=False)
    if event_name == names.RECORD_COMPLETION and kept.get("text") != body.get("text"):
        kept = {**kept, "redacted": True}
    record = {
        "timeUnixNano": str(time),
        "eventName": event_name,
        "body": {"stringValue": _dumps(kept).decode()},
        "attributes": _attributes(attributes, []),
    }
    return _RECORD_HEADER + _dumps(record) + b"]}]}]}\n"


_RECORD_HEADER = b'{"resourceLogs":[{"resource":{},"scopeLogs":[{"scope":{"name":"tracetune"},"logRecords":['

# The header of the last span: nearly always the next one's too. Read and replaced whole, so threads need no lock.
_last_header: tuple[Resource | None, InstrumentationScope | None, bytes] = (None, None, b"")


def _header(resource: Resource, scope: InstrumentationScope | None) -> bytes:
    global _last_header
    known_resource, known_scope, header = _last_header
    if resource is known_resource and scope is known_scope:
        return header
    named: dict[str, Any] = {"name": scope.name if scope is not None else ""}
    if scope is not None and scope.version:
        named["version"] = scope.version
    opening = {
        "resource": {"attributes": _attributes(resource.attributes, [])},
        "scopeSpans": [{"scope": named, "spans": []}],
    }
    header = b'{"resourceSpans":[' + _dumps(opening).removesuffix(b"]}]}")
    _last_header = (resource, scope, header)
    return header


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    redacted: list[str] = []
    document: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": _clean_name(span.name),
        "kind": span.kind.value + 1,  # OTLP counts from 1; 0 is "unspecified"
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        # Both kinds of mapping that a span can hold copy at C speed; reading them item by item does not.
        "attributes": _attributes(span.attributes.copy(), redacted),  # type: ignore[union-attr]
        "status": {},
    }
    if span.parent is not None:
        document["parentSpanId"] = f"{span.parent.span_id:016x}"
    status = span.status
    if not status.is_unset:
        document["status"] = {"code": status.status_code.value}
        if status.description:
            document["status"]["message"] = redacted_repr(status.description)
    if events := span.events:
        document["events"] = [
            {
                "timeUnixNano": str(event.timestamp),
                "name": redacted_text(event.name),
                **_stated(event.attributes, redacted),
            }
            for event in events
        ]
    if links := span.links:
        document["links"] = [
            {
                "traceId": f"{link.context.trace_id:032x}",
                "spanId": f"{link.context.span_id:016x}",
                **_stated(link.attributes, []),
            }
            for link in links
        ]
    if redacted:
        document["attributes"].append({"key": names.REDACTED, "value": _value(redacted)})
    return document


def _stated(attributes: Mapping[str, Any] | None, redacted: list[str]) -> dict[str, Any]:
    """Attributes where there are any, as protobuf has it: what goes there and back is the same line."""
    return {"attributes": _attributes(attributes, redacted)} if attributes else {}


def _attributes(attributes: Mapping[str, Any], redacted: list[str]) -> list[dict[str, Any] | orjson.Fragment]:
    return [
        _repeated(key, value)
        if key in _REPEATED and type(value) is str
        else {"key": key, "value": {"stringValue": value}}
        if key in _SPAN_IDS or type(value) is Redacted
        else {"key": key, "value": {"intValue": str(value)}}
        if key in _COUNTS and type(value) is int
        else {"key": key, "value": _value(_gone_over(key, value, redacted))}
        for key, value in attributes.items()
    ]


def _gone_over(key: str, value: Any, redacted: list[str]) -> Any:
    """An attribute that did not come by way of capture, without secrets; names it where a message was changed."""
    kept = redacted_attribute(key, value)
    if kept is not value and kept != value and holds_message(key):
        redacted.append(key)
    return kept


# Nothing to search in these: hexadecimal ids that the tracer makes, and numbers.
_SPAN_IDS = frozenset({names.EXECUTION, names.LM_PARENT})
_COUNTS = frozenset({names.STEP, names.INVOCATION, names.TURN, names.INPUT_TOKENS, names.OUTPUT_TOKENS})


@lru_cache(maxsize=4096)
def _clean_name(name: str) -> str:
    return redacted_text(name)


# A rollout's spans all say these of themselves, so they are encoded once.
_REPEATED = frozenset(
    {
        names.RUN,
        names.SPLIT,
        names.ROLLOUT_ID,
        names.EXAMPLE_ID,
        names.POLICY_VERSION,
        names.KIND,
        names.MODULE,
        names.KEY,
        names.CALL_KIND,
        names.OPERATION,
        names.PROVIDER,
        names.REQUEST_MODEL,
    }
)


@lru_cache(maxsize=4096)
def _repeated(key: str, value: str) -> orjson.Fragment:
    return orjson.Fragment(_dumps({"key": key, "value": {"stringValue": redacted_text(value)}}))


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else str(value)}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": _attributes(value, [])}}
    if isinstance(value, Sequence):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {} if value is None else {"stringValue": str(value)}


def _dumps(document: Any) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:
        return orjson.dumps(_speakable(document))


def _speakable(value: Any) -> Any:
    """The same document without what UTF-8 cannot express: half of a surrogate pair, in a name or a model's text."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {str(_speakable(key)): _speakable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_speakable(item) for item in value]
    if value is None or isinstance(value, bool | int | float | orjson.Fragment):
        return value
    return str(value)
