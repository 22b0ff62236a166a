"""Rows of the store as OTLP, and back: the same rows, whatever was recorded."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp.serving import START, attribute

from tracetune.adapters.otlp.json_encoding import checked, document_of, fill
from tracetune.grouping.columns import CALLS, OTHER_RECORDS, REAL, RECORDS, SPANS, TEXT, TIME, TOKENS, WHOLE
from tracetune.grouping.exchange.to_otlp import record_document, span_document
from tracetune.grouping.ingest.otlp import Decoded, decode
from tracetune.tracer import names
from tracetune.tracer.encoding import SCOPE_NAME
from tracetune.tracer.messages import to_genai

TEXTS = st.text(max_size=6)
WHOLES = st.integers(0, 2**40)
LEAVES = TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
ANY = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=3
)
CONTENTS = TEXTS | st.none() | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}), max_size=2)
CHAT = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": CONTENTS})
    | st.just(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        }
    ),
    max_size=2,
)
GENAI = CHAT.map(to_genai)


def answers(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as choices, each with its reason to finish."""
    return [{**message, "finish_reason": ("stop", "", "length")[place % 3]} for place, message in enumerate(chat)]


MESSAGES = GENAI.map(lambda chat: orjson.dumps(chat).decode()) | GENAI | st.just('[{"role":"us')
COLUMNS = st.fixed_dictionaries(
    {},
    optional={
        names.KIND: st.sampled_from(["lm", "module", "program", "tool"]),
        names.OPERATION: st.sampled_from(["chat", "text_completion", "embeddings"]),
        names.STATUS: st.sampled_from(["ok", "error", "format_error", "timeout"]),
        names.CALL_KIND: st.sampled_from(["call", "score"]),
        names.UNORDERED: st.booleans(),
        names.LATE: st.booleans(),
        names.TRUNCATED: st.lists(TEXTS, max_size=2),
        names.REDACTED: st.lists(TEXTS, max_size=2),
        names.FINISH_REASONS: st.lists(st.sampled_from(["stop", "length", ""]), max_size=3),
        names.STOP: st.lists(TEXTS, max_size=2),
        names.INPUT_MESSAGES: MESSAGES,
        names.OUTPUT_MESSAGES: MESSAGES | GENAI.map(answers).map(lambda chat: orjson.dumps(chat).decode()),
        **dict.fromkeys((names.TEMPERATURE, names.TOP_P), st.floats(0, 2) | st.integers(0, 2)),
        **dict.fromkeys(
            (names.STEP, names.INVOCATION, names.TURN, names.TOP_K, names.MAX_TOKENS, names.SEED, names.CHOICE_COUNT),
            WHOLES,
        ),
        **dict.fromkeys(
            (names.RUN, names.SPLIT, names.ROLLOUT_ID, names.EXAMPLE_ID, names.POLICY_VERSION, names.MODULE, names.KEY,
             names.EXECUTION, names.LM_PARENT, names.INPUT, names.OUTPUT, names.ERROR_TYPE, names.PROVIDER,
             names.REQUEST_MODEL, names.RESPONSE_MODEL, names.RESPONSE_ID),
            TEXTS,
        ),
    },
)  # fmt: skip
ATTRIBUTES = st.builds(lambda known, others: {**others, **known}, COLUMNS, st.dictionaries(TEXTS, ANY, max_size=3))


def value(of: Any) -> dict[str, Any]:
    """A value in OTLP/JSON."""
    if isinstance(of, list):
        return {"arrayValue": {"values": [value(item) for item in of]}}
    if isinstance(of, dict):
        return {"kvlistValue": {"values": [{"key": key, "value": value(item)} for key, item in of.items()]}}
    return {} if of is None else attribute("", of)["value"]


SPAN = st.fixed_dictionaries(
    {
        "traceId": st.sampled_from(["ab" * 16, "cd" * 16]),
        "spanId": st.sampled_from(["ab" * 8, "cd" * 8]),
        "name": TEXTS,
        "startTimeUnixNano": st.integers(START, START + 10**9).map(str),
        "endTimeUnixNano": st.integers(START, START + 10**9).map(str),
        "attributes": ATTRIBUTES.map(lambda all_of: [{"key": key, "value": value(of)} for key, of in all_of.items()]),
    },
    optional={
        "parentSpanId": st.sampled_from(["ef" * 8]),
        "kind": st.integers(0, 5),
        "flags": st.integers(1, 2**32 - 1),
        "traceState": TEXTS.filter(bool),
        "droppedAttributesCount": st.integers(1, 9),
        "status": st.fixed_dictionaries({}, optional={"code": st.integers(0, 2), "message": TEXTS}),
        "events": st.just([{"timeUnixNano": "5", "name": "seen", "attributes": [attribute("n", 1)]}]),
        "links": st.just([{"traceId": "ab" * 16, "spanId": "ab" * 8}]),
    },
)
OURS = {"name": SCOPE_NAME}
FOREIGN = [{"name": "a library"}, {"name": "a library", "version": "1", "attributes": []}, {}]
# What of a foreign span's messages the store does not keep apart is not asked back: these it does.
FOREIGN_MESSAGES = st.sampled_from(
    [[{"role": "user", "parts": [{"type": "text", "content": "who?"}]}], [{"role": "user", "parts": []}]]
)
FOREIGN_ANSWERS = FOREIGN_MESSAGES.map(lambda chat: [{**chat[0], "role": "assistant", "finish_reason": "stop"}])


@st.composite
def spans_in_scopes(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A span and its scope."""
    span = draw(SPAN)
    if draw(st.booleans()):
        return span, OURS
    contents = {names.INPUT_MESSAGES: FOREIGN_MESSAGES, names.OUTPUT_MESSAGES: FOREIGN_ANSWERS}
    span["attributes"] = [
        {**item, "value": value(orjson.dumps(draw(contents[item["key"]])).decode())}
        if item["key"] in contents
        else item
        for item in span["attributes"]
        if item["key"] != names.FINISH_REASONS
    ]
    return span, draw(st.sampled_from(FOREIGN))


RESOURCES = st.sampled_from([{}, {"attributes": [attribute("service.name", "shop")]}])


def rows_of(document: dict[str, Any], request: Any) -> Decoded:
    """What the store reads of a document that went through protobuf."""
    message = request()
    fill(message, checked(document, message.DESCRIPTOR))
    decoded = decode([(0, orjson.dumps(document_of(message)))])
    assert decoded.rejected == []
    return decoded


@given(spans_in_scopes(), RESOURCES)
def test_a_span_encoded_and_decoded_has_the_same_rows(span_in_scope, resource):
    """The row of the span and those of its calls are the same, column by column."""
    span, scope = span_in_scope
    document = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": [span]}]}]}
    once = rows_of(document, ExportTraceServiceRequest)
    [row] = once.spans
    calls = [dict(zip(CALLS.names, call, strict=True)) for call in once.calls]
    its_resource, its_scope, encoded = span_document({**dict(zip(SPANS.names, row, strict=True)), "calls": calls})
    document = {"resourceSpans": [{"resource": its_resource, "scopeSpans": [{"scope": its_scope, "spans": [encoded]}]}]}
    again = rows_of(document, ExportTraceServiceRequest)
    assert (again.spans, again.calls) == (once.spans, once.calls)


BY_TYPE = {
    TEXT: TEXTS,
    WHOLE: st.integers(-(2**63), 2**63 - 1),
    REAL: st.floats(allow_nan=False, allow_infinity=False),
    TIME: st.integers(START, START + 10**9),
    TOKENS: st.lists(st.integers(0, 2**31 - 1), max_size=3),
}


@st.composite
def records(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A record of one of our names, with what it needs and any of what it may have."""
    name = draw(st.sampled_from(sorted(RECORDS)))
    body = draw(st.dictionaries(st.sampled_from(["more", "besides"]), ANY.filter(lambda item: item != {}), max_size=2))
    for column in RECORDS[name].columns:
        if column.required or draw(st.booleans()):
            strategy = ANY if column.json else BY_TYPE.get(column.type, st.lists(BY_TYPE[REAL], max_size=2))
            body[column.field or column.name] = draw(strategy)
    return name, body


def record_rows(event_name: str | None, body: str, attributes: list[dict[str, Any]]) -> tuple[str, tuple[Any, ...]]:
    """The table and the row of one record."""
    record = {"timeUnixNano": str(START), "body": {"stringValue": body}, "attributes": attributes}
    if event_name:
        record["eventName"] = event_name
    document = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    [(table, [row])] = rows_of(document, ExportLogsServiceRequest).records.items()
    return table, row


@given(records(), st.booleans())
def test_a_record_encoded_and_decoded_has_the_same_row(record, is_scoped):
    """Every table of records gives back the rows that were written to it."""
    name, body = record
    attributes = [attribute(names.RECORD_ID, "r1"), *([attribute(names.RUN, "try-1")] if is_scoped else [])]
    table, row = record_rows(name, orjson.dumps(body).decode(), attributes)
    encoded = record_document(table, dict(zip(RECORDS[name].schema.names, row, strict=True)))
    assert record_rows(encoded["eventName"], encoded["body"]["stringValue"], encoded["attributes"]) == (table, row)


@given(
    st.none() | TEXTS.filter(lambda name: name not in RECORDS and name), TEXTS, st.dictionaries(TEXTS, ANY, max_size=2)
)
def test_a_record_of_somebody_else_keeps_its_name_body_and_attributes(event_name, body, others):
    """Records that this version does not know come back as they came."""
    attributes = [{"key": key, "value": value(of)} for key, of in others.items() if key != names.RECORD_ID]
    table, row = record_rows(event_name, body, [attribute(names.RECORD_ID, "r1"), *attributes])
    encoded = record_document(table, dict(zip(OTHER_RECORDS.schema.names, row, strict=True)))
    again = record_rows(encoded.get("eventName"), encoded["body"]["stringValue"], encoded["attributes"])
    assert again == (table, row)
