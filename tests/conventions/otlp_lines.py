"""Lines of another instrumentation for tests: spans and log records in plain OTLP/JSON."""

from __future__ import annotations

import math
from typing import Any

import orjson
from store.spool_lines import START


def otlp_value(value: Any) -> dict[str, Any]:
    """A value as OTLP/JSON has it."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else "Infinity"}
    if isinstance(value, list):
        return {"arrayValue": {"values": [otlp_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": otlp_attributes(value)}}
    return {"stringValue": value} if value is not None else {}


def otlp_attributes(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """Attributes as OTLP/JSON has them."""
    return [{"key": key, "value": otlp_value(value)} for key, value in attributes.items()]


def foreign_span(
    name: str,
    span_id: int,
    attributes: dict[str, Any] | None = None,
    *,
    parent: int | None = None,
    trace_id: int = 7,
    events: list[tuple[str, dict[str, Any]]] | None = None,
    failed: bool = False,
) -> bytes:
    """One span of somebody else's, as one line."""
    span: dict[str, Any] = {
        "traceId": f"{trace_id:032x}",
        "spanId": f"{span_id:016x}",
        "name": name,
        "startTimeUnixNano": str(START + span_id),
        "endTimeUnixNano": str(START + span_id + 1_000_000),
        "attributes": otlp_attributes(attributes or {}),
        "status": {"code": 2} if failed else {},
    }
    if parent is not None:
        span["parentSpanId"] = f"{parent:016x}"
    if events:
        span["events"] = [
            {"name": event, "timeUnixNano": str(START), "attributes": otlp_attributes(said)} for event, said in events
        ]
    scoped = {"scope": {"name": "somebody.elses"}, "spans": [span]}
    return orjson.dumps({"resourceSpans": [{"scopeSpans": [scoped]}]}) + b"\n"


def foreign_record(
    event_name: str,
    attributes: dict[str, Any],
    *,
    body: Any = None,
    span_id: int | None = None,
    trace_id: int = 7,
    at: int = 0,
) -> bytes:
    """One log record of somebody else's, as one line."""
    record: dict[str, Any] = {
        "timeUnixNano": str(START + at),
        "eventName": event_name,
        "attributes": otlp_attributes(attributes),
    }
    if body is not None:
        record["body"] = otlp_value(body)
    if span_id is not None:
        record |= {"traceId": f"{trace_id:032x}", "spanId": f"{span_id:016x}"}
    return orjson.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}) + b"\n"
