"""Rows of the store as OTLP again: the inverse of `otlp.decode`.

What ingest took apart is put together: columns become attributes, calls become messages.
Decoded once more it gives the same rows. How something was said that can be said in
several ways (an attribute that is repeated, bytes, messages as JSON or as structures) the
store does not keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from tracetune.grouping.columns import OTHER_RECORDS, RECORDS, SPAN_ATTRIBUTES
from tracetune.grouping.ingest.otlp import LM_OPERATIONS, SAMPLING
from tracetune.tracer import names
from tracetune.tracer.encoding import SCOPE_NAME
from tracetune.tracer.messages import to_genai

Row = Mapping[str, Any]

# The other three have a place of their own in a span, where they are not what goes without saying.
_COLUMNS = {column: name for column, name in SPAN_ATTRIBUTES.items() if column not in ("kind", "rollout_id", "status")}
# Fields of a span that are kept among its attributes.
_KEPT_FIELDS = ("droppedAttributesCount", "droppedEventsCount", "droppedLinksCount", "flags", "links", "traceState")
_KEPT_RECORD_FIELDS = frozenset(
    f"otlp.{field}" for field in ("severityNumber", "severityText", "droppedAttributesCount", "flags")
)
_IDS = {"traceId": "trace_id", "spanId": "span_id"}
_INTERNAL, _CLIENT = 1, 3
_ERROR = 2


def span_document(row: Row) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A span's resource, its scope and itself, in OTLP/JSON.

    Args:
        row: the columns of `spans`, its times in nanoseconds, and `calls`: its rows of
            `call_rows` by choice, or None.
    """
    attributes: dict[str, Any] = orjson.loads(row["attributes"]) if row["attributes"] else {}
    take = attributes.pop
    is_ours = row["scope"] == SCOPE_NAME
    scope = {"name": row["scope"] or "", **take("otlp.scope", {})}
    usual_kind = _CLIENT if is_ours and row["kind"] == "lm" else _INTERNAL
    span: dict[str, Any] = {
        "traceId": row["trace_id"],
        "spanId": row["span_id"],
        "name": row["name"],
        "kind": take("otlp.kind", usual_kind),
        "startTimeUnixNano": str(row["started_at"]),
        "endTimeUnixNano": str(row["ended_at"]),
        "status": _status(row, attributes),
    }
    if row["parent_span_id"]:
        span["parentSpanId"] = row["parent_span_id"]
    span.update((field, take(f"otlp.{field}")) for field in _KEPT_FIELDS if f"otlp.{field}" in attributes)
    if row["events"]:
        span["events"] = orjson.loads(row["events"])
    attributes.update((name, row[column]) for column, name in _COLUMNS.items() if row[column] is not None)
    if row["kind"] and (is_ours or row["kind"] != "lm" or row["operation"] not in LM_OPERATIONS):
        attributes[names.KIND] = row["kind"]
    if row["rollout_id"] != row["trace_id"]:
        attributes[names.ROLLOUT_ID] = row["rollout_id"]
    if row["status"] != ("error" if span["status"].get("code") == _ERROR else "ok"):
        attributes[names.STATUS] = row["status"]
    _say_calls(attributes, row["calls"] or (), is_ours=is_ours)
    span["attributes"] = _attributes(attributes)
    return orjson.loads(row["resource"]) if row["resource"] else {}, scope, span


def record_document(table: str, row: Row) -> dict[str, Any]:
    """A row of one of the tables of records as a log record, in OTLP/JSON.

    Args:
        table: its name.
        row: its columns, times in nanoseconds; of a batch its `members` too, as JSON.
    """
    rest = orjson.loads(row["rest"]) if row["rest"] else {}
    record: dict[str, Any] = {"timeUnixNano": str(row["recorded_at"])}
    if table == OTHER_RECORDS.table:
        name, body = row["event_name"], row["body"]
        record.update((field, row[column]) for field, column in _IDS.items() if row[column])
        record.update((key.removeprefix("otlp."), rest[key]) for key in rest if key in _KEPT_RECORD_FIELDS)
        attributes = {key: value for key, value in rest.items() if key not in _KEPT_RECORD_FIELDS}
    else:
        name, known = next((event, known) for event, known in RECORDS.items() if known.table == table)
        fields = {
            column.field or column.name: orjson.Fragment(row[column.name]) if column.json else row[column.name]
            for column in known.columns
            if row[column.name] is not None
        }
        body, attributes = orjson.dumps({**fields, **rest}).decode(), {}
    if name:
        record["eventName"] = name
    attributes[names.RECORD_ID] = row["record_id"]
    return {**record, "body": {"stringValue": body}, "attributes": _attributes(attributes)}


def _status(row: Row, attributes: dict[str, Any]) -> dict[str, Any]:
    code = attributes.pop("otlp.status.code", None)
    message = attributes.pop("otlp.status.message", None)
    stated = {"code": code or (None if row["status"] == "ok" else _ERROR), "message": message}
    return {field: value for field, value in stated.items() if value}


def _say_calls(attributes: dict[str, Any], calls: Sequence[Row], *, is_ours: bool) -> None:
    """Add what stands in the rows of an LM span's choices and nowhere else."""
    if not calls:
        return
    first = calls[0]
    if first["lm_parent"] is not None:
        attributes[names.LM_PARENT] = first["lm_parent"]
    if first["kind"] != "call":
        attributes[names.CALL_KIND] = first["kind"]
    if first["sampling"]:
        sampling = orjson.loads(first["sampling"])
        attributes.update((name, sampling[field]) for field, name in SAMPLING if field in sampling)
    if first["messages"] and names.INPUT_MESSAGES not in attributes:
        chat = [_genai_message(message, is_ours=is_ours) for message in orjson.loads(first["messages"])]
        attributes[names.INPUT_MESSAGES] = orjson.dumps(chat).decode()
    if names.OUTPUT_MESSAGES not in attributes and first["completion"] is not None:
        attributes[names.OUTPUT_MESSAGES] = orjson.dumps([_answer(call) for call in calls]).decode()
    is_said_by_reasons = len(calls) > 1 and first["completion"] is None  # that there were so many choices
    if is_said_by_reasons or any(call["finish_reason"] for call in calls):
        attributes[names.FINISH_REASONS] = [call["finish_reason"] or "" for call in calls]


def _genai_message(message: dict[str, Any], *, is_ours: bool) -> dict[str, Any]:
    content = message.get("content")
    # Of our own spans alone, a message without parts and one with a part that is null are told apart.
    if message.keys() == {"role", "content"} and (isinstance(content, str) or (content is None and is_ours)):
        return {"role": message["role"], "parts": [{"type": "text", "content": message["content"]}]}
    [converted] = to_genai([message])
    return converted


def _answer(call: Row) -> dict[str, Any]:
    answer = {"role": "assistant", "parts": [{"type": "text", "content": call["completion"] or ""}]}
    return {**answer, "finish_reason": call["finish_reason"]} if call["finish_reason"] else answer


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case None:
            return {}
        case str():
            return {"stringValue": value}
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case dict():
            return {"kvlistValue": {"values": _attributes(value)}}
        case _:
            return {"arrayValue": {"values": [_value(item) for item in value]}}
