"""Spans and log records: what OTLP sends, and what makes one of them fit to be kept.

A span or record that cannot be kept is refused alone, with a reason; its neighbours are
not. What is refused here would be set aside by the store, where who sent it never hears
of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tracetune.adapters.otlp.json_encoding import Json, Malformed
from tracetune.tracer import names

# The store's times are 64-bit; the last one means "infinity" there.
_LAST_TIME = 2**63 - 2


@dataclass(frozen=True, slots=True)
class Signal:
    """One of the two kinds of things that OTLP brings and the store keeps.

    Attributes:
        path: where a receiver takes it.
        noun: what its items are called in messages.
        resources: the field that holds the resources of a request, in JSON.
        scopes: the field of a resource that holds its scopes.
        items: the field of a scope that holds the spans or records.
        item: the message of one of them.
        request: the message of a request.
        response: the message of an answer.
        rejected: the field of a partial success that counts what was refused, in JSON.
        check: refuses an item that cannot be kept, and completes one that can.
    """

    path: str
    noun: str
    resources: str
    scopes: str
    items: str
    item: Any
    request: Any
    response: Any
    rejected: str
    check: Callable[[Json, Json, Json], None]


def snake_case(name: str) -> str:
    """A field's name in protobuf, from that in JSON.

    Example:
        >>> snake_case("resourceSpans")
        'resource_spans'
    """
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _check_span(span: Json, resource: Json, scope: Json) -> None:
    _check_id(span, "traceId", 16)
    _check_id(span, "spanId", 8)
    parent = span.get("parentSpanId", "")
    if not parent.strip("0"):  # as some exporters write "none"
        span.pop("parentSpanId", None)
    elif len(parent) != 16:
        raise Malformed(f"its parentSpanId {parent[:64]!r} is not 8 bytes")
    for field in ("startTimeUnixNano", "endTimeUnixNano"):
        _check_time(span, field)


def _check_record(record: Json, resource: Json, scope: Json) -> None:
    if int(record.get("timeUnixNano", 0)):
        _check_time(record, "timeUnixNano")
    else:  # the source does not know when; the observer does
        record.pop("timeUnixNano", None)
        _check_time(record, "observedTimeUnixNano")
    attributes = record.setdefault("attributes", [])
    if not any(attribute["key"] == names.RECORD_ID for attribute in attributes):
        # The same record is the same one however it is sent and however often.
        content = orjson.dumps([resource, scope, record], option=orjson.OPT_SORT_KEYS)
        record_id = hashlib.sha256(content).hexdigest()[:32]
        attributes.append({"key": names.RECORD_ID, "value": {"stringValue": record_id}})


def _check_id(item: Json, field: str, length: int) -> None:
    value = item.get(field, "")
    if not value:
        raise Malformed(f"it has no {field}")
    if len(value) != 2 * length:
        raise Malformed(f"its {field} {value[:64]!r} is not {length} bytes")
    if not value.strip("0"):
        raise Malformed(f"its {field} is all zero")


def _check_time(item: Json, field: str) -> None:
    time = int(item.get(field, 0))
    if not time:
        raise Malformed(f"it has no {field}")
    if time > _LAST_TIME:
        raise Malformed(f"its {field} {time} is later than the year 2262")


TRACES = Signal(
    path="/v1/traces",
    noun="span",
    resources="resourceSpans",
    scopes="scopeSpans",
    items="spans",
    item=Span.DESCRIPTOR,
    request=ExportTraceServiceRequest,
    response=ExportTraceServiceResponse,
    rejected="rejectedSpans",
    check=_check_span,
)
LOGS = Signal(
    path="/v1/logs",
    noun="log record",
    resources="resourceLogs",
    scopes="scopeLogs",
    items="logRecords",
    item=LogRecord.DESCRIPTOR,
    request=ExportLogsServiceRequest,
    response=ExportLogsServiceResponse,
    rejected="rejectedLogRecords",
    check=_check_record,
)
