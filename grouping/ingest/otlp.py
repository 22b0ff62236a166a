"""Spool lines into rows: one OTLP/JSON document a line, spans and log records.

The tracer writes one span or record a line; a Collector's file has many. A line that
cannot be read is set aside, with its reason, and its neighbours are kept. Traces
without a rollout identity are one rollout each, named by their trace id. Our own spans
say everything in our names; those of other instrumentations are read by the table in
`conventions`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from tracetune.grouping.columns import RECORDS
from tracetune.grouping.conventions.chat_messages import chat_messages, choices
from tracetune.grouping.conventions.spans import Reading, read_foreign
from tracetune.grouping.ingest.documents import parts_of
from tracetune.grouping.ingest.records import record_row
from tracetune.tracer import encoding, names

LM_OPERATIONS = ("chat", "text_completion", "generate_content")
_SPAN_FIELDS = {
    "traceId",
    "spanId",
    "parentSpanId",
    "name",
    "kind",
    "startTimeUnixNano",
    "endTimeUnixNano",
    "attributes",
    "events",
    "status",
}
# Other fields of somebody else's record are kept as `otlp.<field>`.
_RECORD_FIELDS = {"timeUnixNano", "observedTimeUnixNano", "eventName", "traceId", "spanId", "body", "attributes"}

# Where a record's name stood before the protocol had a field for it.
_EVENT_NAME = "event.name"


@dataclass(slots=True)
class Decoded:
    """What a stretch of a segment holds, as tuples in the order of the schemas in `rows`."""

    spans: list[tuple[Any, ...]] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    records: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    rejected: list[tuple[int, bytes, str]] = field(default_factory=list)

    @property
    def n_records(self) -> int:
        """How many log records were read."""
        return sum(len(rows) for rows in self.records.values())

    def take(self, other: Decoded) -> None:
        """Add what another stretch holds."""
        self.spans += other.spans
        self.calls += other.calls
        for table, rows in other.records.items():
            self.records.setdefault(table, []).extend(rows)
        self.rejected += other.rejected


def decode(lines: Iterable[tuple[int, bytes]]) -> Decoded:
    """Rows of the lines given with their offsets; unreadable ones are in `rejected`.

    Example:
        >>> decode([(0, b"{")]).rejected[0][2]
        'not JSON: unexpected end of data: line 1 column 2 (char 1)'
    """
    decoded = Decoded()
    for offset, line in lines:
        n_spans, n_calls = len(decoded.spans), len(decoded.calls)
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            decoded.rejected.append((offset, line, f"not JSON: {error}"))
            continue
        try:
            records = _decode_document(document, line, decoded)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            del decoded.spans[n_spans:], decoded.calls[n_calls:]
            if parts := parts_of(document):  # one of them, and its neighbours are kept
                decoded.take(decode((offset, part) for part in parts))
            else:
                decoded.rejected.append((offset, line, _reason(error)))
            continue
        for table, row in records:
            decoded.records.setdefault(table, []).append(row)
    return decoded


def attributes_of(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """OTLP attributes as a plain dictionary."""
    attributes = {}
    for item in items:
        value = item.get("value") or {}
        text = value.get("stringValue")
        attributes[item["key"]] = text if text is not None else _value(value)
    return attributes


def _value(value: dict[str, Any]) -> Any:
    for kind, raw in value.items():
        if kind == "intValue":
            return int(raw)
        if kind == "arrayValue":
            return [_value(item) for item in raw.get("values", ())]
        if kind == "kvlistValue":
            return attributes_of(raw.get("values", ()))
        if kind == "doubleValue":
            return float(raw)
        return raw  # stringValue, boolValue, bytesValue in base64
    return None


def _decode_document(document: Any, line: bytes, decoded: Decoded) -> list[tuple[str, tuple[Any, ...]]]:
    if not isinstance(document, dict) or not ("resourceSpans" in document or "resourceLogs" in document):
        raise ValueError("not an OTLP document: neither resourceSpans nor resourceLogs")
    for resource_spans in document.get("resourceSpans", ()):
        resource = resource_spans.get("resource")
        for scope_spans in resource_spans["scopeSpans"]:
            scope = scope_spans.get("scope") or {}
            for span in scope_spans["spans"]:
                _decode_span(span, resource, scope, decoded)
    records = []
    for resource_logs in document.get("resourceLogs", ()):
        for scope_logs in resource_logs["scopeLogs"]:
            for record in scope_logs["logRecords"]:
                records.append(_decode_record(record, line))
    return records


def _decode_span(
    span: dict[str, Any], resource: dict[str, Any] | None, scope: dict[str, Any], decoded: Decoded
) -> None:
    attributes = attributes_of(span.get("attributes", ()))
    trace_id, span_id, parent = span["traceId"], span["spanId"], span.get("parentSpanId") or None
    failed = _failed(span.get("status"))
    reading = None
    is_ours = scope.get("name") == encoding.SCOPE_NAME
    if is_ours:
        take = attributes.pop
    else:
        reading, failed = _read_foreign(span, attributes, failed)
        take = reading.said.pop
    if not (trace_id and span_id):
        raise ValueError("a span without traceId or spanId")
    started_at, ended_at = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
    rollout_id = take(names.ROLLOUT_ID, None) or trace_id
    run, split, step = take(names.RUN, None), take(names.SPLIT, None), take(names.STEP, None)
    operation = take(names.OPERATION, None)
    kind = take(names.KIND, None) or ("lm" if operation in LM_OPERATIONS else None)
    example_id = take(names.EXAMPLE_ID, None)
    recorded_input, recorded_output = take(names.INPUT, None), take(names.OUTPUT, None)
    if example_id is None and (parent is None or (kind == "program" and reading is not None)):
        example_id = example_id_of(reading.messages if kind == "lm" and reading is not None else recorded_input)
    policy_version, module, key = take(names.POLICY_VERSION, None), take(names.MODULE, None), take(names.KEY, None)
    execution = take(names.EXECUTION, None)
    invocation, turn = take(names.INVOCATION, None), take(names.TURN, None)
    unordered, late = take(names.UNORDERED, None), take(names.LATE, None)
    truncated, redacted = take(names.TRUNCATED, None), take(names.REDACTED, None)
    status = take(names.STATUS, None) or ("error" if failed else "ok")
    request_model, response_model = take(names.REQUEST_MODEL, None), take(names.RESPONSE_MODEL, None)
    response_id, provider = take(names.RESPONSE_ID, None), take(names.PROVIDER, None)
    input_tokens, output_tokens = take(names.INPUT_TOKENS, None), take(names.OUTPUT_TOKENS, None)
    if kind == "lm":
        lm_parent = take(names.LM_PARENT, None)
        call_kind = take(names.CALL_KIND, None) or "call"
        if reading is None:
            messages, found = _content(attributes)
            sampling = _sampling(attributes)
        else:
            messages, found = reading.messages, reading.choices
            sampling = _sampling(reading.said)
        duration_ms = (ended_at - started_at) / 1e6
        for choice, (completion, finish_reason) in enumerate(found):
            decoded.calls.append(
                (
                    span_id if choice == 0 else f"{span_id}.{choice}",
                    span_id,
                    lm_parent,
                    rollout_id,
                    run,
                    split,
                    step,
                    example_id,
                    module,
                    key or "",
                    execution,
                    invocation,
                    turn,
                    invocation or 0,
                    turn or 0,
                    choice,
                    call_kind,
                    started_at,
                    duration_ms,
                    status,
                    request_model or response_model,
                    provider,
                    policy_version,
                    response_id,
                    messages,
                    completion,
                    finish_reason,
                    sampling,
                    input_tokens if choice == 0 else None,
                    output_tokens if choice == 0 else None,
                    bool(unordered),
                    bool(truncated),
                    bool(redacted),
                    bool(late),
                )
            )
    error_type = take(names.ERROR_TYPE, None)
    choice_count, events = take(names.CHOICE_COUNT, None), span.get("events")
    if not span.keys() <= _SPAN_FIELDS:
        # In one order, so that the same span has the same row whenever it comes.
        attributes.update((f"otlp.{name}", span[name]) for name in sorted(span.keys() - _SPAN_FIELDS))
    if not is_ours:
        _keep_foreign(attributes, span, scope)
    if message := (span.get("status") or {}).get("message"):
        attributes["otlp.status.message"] = message
    decoded.spans.append(
        (
            trace_id,
            span_id,
            parent,
            span.get("name") or "",
            kind,
            started_at,
            ended_at,
            status,
            error_type,
            run,
            split,
            step,
            rollout_id,
            example_id,
            policy_version,
            module,
            key,
            execution,
            invocation,
            turn,
            unordered,
            late,
            truncated,
            redacted,
            recorded_input,
            recorded_output,
            operation,
            provider,
            request_model,
            response_model,
            response_id,
            input_tokens,
            output_tokens,
            choice_count,
            orjson.dumps(attributes).decode() if attributes else None,
            orjson.dumps(events).decode() if events else None,
            orjson.dumps(resource).decode() if resource else None,
            scope.get("name"),
        )
    )


def _read_foreign(span: dict[str, Any], attributes: dict[str, Any], failed: bool) -> tuple[Reading, bool]:
    """What a span of another instrumentation says, and whether it failed."""
    events = []
    for event in span.get("events") or ():
        try:
            events.append((event["name"], attributes_of(event.get("attributes") or ())))
        except (AttributeError, KeyError, TypeError, ValueError):
            continue  # kept as it came, with the others
    # An exception that was caught inside the span is no failure of the span's.
    failed = failed or any(
        name == "exception" and said.get("exception.escaped") in (True, "True", "true") for name, said in events
    )
    if not failed:
        events = [event for event in events if event[0] != "exception"]
    is_root = not span.get("parentSpanId")
    return read_foreign(span.get("name") or "", attributes, events, is_root=is_root), failed


def _keep_foreign(attributes: dict[str, Any], span: dict[str, Any], scope: dict[str, Any]) -> None:
    """Keep among the attributes what the tracer's own spans never say, or what goes without saying there."""
    if (kind := span.get("kind")) not in (None, 0, 1):  # 1, within a process, is what kinds are by default
        attributes["otlp.kind"] = kind
    if (span.get("status") or {}).get("code") in (1, "STATUS_CODE_OK"):
        attributes["otlp.status.code"] = 1
    if more := {name: value for name, value in scope.items() if name != "name"}:
        attributes["otlp.scope"] = more


def _decode_record(record: dict[str, Any], line: bytes) -> tuple[str, tuple[Any, ...]]:
    attributes = attributes_of(record.get("attributes", ()))
    # A record of somebody else's has no id; the same bytes are the same record.
    record_id = attributes.pop(names.RECORD_ID, None) or hashlib.sha256(line).hexdigest()[:32]
    recorded_at = int(record.get("timeUnixNano") or record.get("observedTimeUnixNano") or 0)
    body = _value(record.get("body") or {})
    event_name = record.get("eventName") or None
    if event_name is None and isinstance(attributes.get(_EVENT_NAME), str):
        event_name = attributes.pop(_EVENT_NAME)
    if event_name not in RECORDS:
        attributes.update((f"otlp.{name}", record[name]) for name in sorted(record.keys() - _RECORD_FIELDS))
    span = (record.get("traceId") or None, record.get("spanId") or None)
    return record_row(event_name, record_id, recorded_at, attributes, body, span)


def _content(attributes: dict[str, Any]) -> tuple[str | None, list[tuple[str | None, str | None]]]:
    """The prompt and the choices of an LM span; what they cannot express stays in the attributes."""
    recorded_input = attributes.pop(names.INPUT_MESSAGES, None)
    recorded_output = attributes.pop(names.OUTPUT_MESSAGES, None)
    finish_reasons = attributes.pop(names.FINISH_REASONS, None)
    messages = None
    if recorded_input is not None:
        try:
            messages, keep = chat_messages(recorded_input)
        except (KeyError, TypeError, ValueError):
            keep = True  # cut short by the tracer's size limit, or of another shape
        if keep:
            attributes[names.INPUT_MESSAGES] = recorded_input
    found: list[tuple[str | None, str | None]] = []
    if recorded_output is not None:
        try:
            found, keep = choices(recorded_output, finish_reasons)
        except (KeyError, TypeError, ValueError):
            keep = True
        if keep:
            attributes[names.OUTPUT_MESSAGES] = recorded_output
    if not found:
        found = [(None, reason or None) for reason in finish_reasons or [None]]
    return messages, found


SAMPLING = (
    ("temperature", names.TEMPERATURE),
    ("top_p", names.TOP_P),
    ("top_k", names.TOP_K),
    ("max_tokens", names.MAX_TOKENS),
    ("seed", names.SEED),
    ("stop", names.STOP),
)


def _sampling(attributes: dict[str, Any]) -> str | None:
    sampling = {name: attributes.pop(key) for name, key in SAMPLING if key in attributes}
    for name in ("temperature", "top_p"):
        if isinstance(sampling.get(name), int):
            sampling[name] = float(sampling[name])
    return orjson.dumps(sampling).decode() if sampling else None


def example_id_of(recorded: Any) -> str | None:
    """The hash of a root span's input, canonical as in `Example.of`; None where it recorded none."""
    if not isinstance(recorded, str):
        return None
    try:
        value = json.loads(recorded)
    except (ValueError, RecursionError):
        value = recorded
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _failed(status: dict[str, Any] | None) -> bool:
    return status is not None and status.get("code") in (2, "STATUS_CODE_ERROR")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"not as OTLP/JSON has it: no {error.args[0]!r}"
    return f"not as OTLP/JSON has it: {error}"
