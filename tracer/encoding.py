"""Spans and records as lines of OTLP/JSON, the OpenTelemetry file format.

Every line is one whole document, so a file cut anywhere loses at most its last line.
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

from tracetune.tracer import names

# The instrumentation scope of our own spans and records.
SCOPE_NAME = "tracetune"


def span_line(span: ReadableSpan) -> bytes:
    """One ended span as one line, newline included."""
    return _header(span.resource, span.instrumentation_scope) + _dumps(_span(span)) + b"]}]}]}\n"


def record_line(event_name: str, body: Mapping[str, Any], attributes: Mapping[str, Any], time: int) -> bytes:
    """One log record as one line, newline included; the body is one JSON object as a string."""
    record = {
        "timeUnixNano": str(time),
        "eventName": event_name,
        "body": {"stringValue": _dumps(body).decode()},
        "attributes": _attributes(attributes),
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
        "resource": {"attributes": _attributes(resource.attributes)},
        "scopeSpans": [{"scope": named, "spans": []}],
    }
    header = b'{"resourceSpans":[' + _dumps(opening).removesuffix(b"]}]}")
    _last_header = (resource, scope, header)
    return header


def _span(span: ReadableSpan) -> dict[str, Any]:
    context = span.context
    document: dict[str, Any] = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "name": span.name,
        "kind": span.kind.value + 1,  # OTLP counts from 1; 0 is "unspecified"
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        # Both kinds of mapping that a span can hold copy at C speed; reading them item by item does not.
        "attributes": _attributes(span.attributes.copy()),  # type: ignore[union-attr]
        "status": {},
    }
    if span.parent is not None:
        document["parentSpanId"] = f"{span.parent.span_id:016x}"
    status = span.status
    if not status.is_unset:
        document["status"] = {"code": status.status_code.value}
        if status.description:
            document["status"]["message"] = status.description
    if events := span.events:
        document["events"] = [
            {
                "timeUnixNano": str(event.timestamp),
                "name": event.name,
                **_stated(event.attributes),
            }
            for event in events
        ]
    if links := span.links:
        document["links"] = [
            {
                "traceId": f"{link.context.trace_id:032x}",
                "spanId": f"{link.context.span_id:016x}",
                **_stated(link.attributes),
            }
            for link in links
        ]
    return document


def _stated(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes where there are any, as protobuf has it: what goes there and back is the same line."""
    return {"attributes": _attributes(attributes)} if attributes else {}


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any] | orjson.Fragment]:
    return [
        (_repeated(key, value) if key in _REPEATED else {"key": key, "value": {"stringValue": value}})
        if type(value) is str
        else {"key": key, "value": _value(value)}
        for key, value in attributes.items()
    ]


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
        names.CALL_KIND,
        names.OPERATION,
        names.PROVIDER,
        names.REQUEST_MODEL,
    }
)


@lru_cache(maxsize=4096)
def _repeated(key: str, value: str) -> orjson.Fragment:
    return orjson.Fragment(_dumps({"key": key, "value": {"stringValue": value}}))


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
        return {"kvlistValue": {"values": _attributes(value)}}
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
