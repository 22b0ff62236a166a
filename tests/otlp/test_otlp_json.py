"""OTLP's two encodings say the same things, and what only one of them can say is refused."""

from __future__ import annotations

import base64
import math
import struct

import orjson
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from otlp.serving import a_record, a_span, request

from tracetune.adapters.otlp.documents import LINE_BYTES, read_document, read_json_request, read_protobuf
from tracetune.adapters.otlp.json_encoding import Malformed, checked, document_of, fill, read_json
from tracetune.adapters.otlp.signals import LOGS, TRACES

TEXTS = st.text(max_size=8)
NUMBERS = st.integers(0, 2**64 - 1)


def pairs(values):
    """Attributes, each with a value."""
    return st.builds(KeyValue, key=TEXTS, value=values)


VALUES = st.recursive(
    st.builds(AnyValue)
    | st.builds(AnyValue, string_value=TEXTS)
    | st.builds(AnyValue, bool_value=st.booleans())
    | st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1))
    | st.builds(AnyValue, double_value=st.floats(allow_nan=False))
    | st.builds(AnyValue, bytes_value=st.binary(max_size=8)),
    lambda inner: (
        st.builds(AnyValue, array_value=st.builds(ArrayValue, values=st.lists(inner, max_size=2)))
        | st.builds(AnyValue, kvlist_value=st.builds(KeyValueList, values=st.lists(pairs(inner), max_size=2)))
    ),
    max_leaves=4,
)


ATTRIBUTES = st.lists(pairs(VALUES), max_size=2)
SPANS = st.builds(
    Span,
    trace_id=st.binary(min_size=16, max_size=16),
    span_id=st.binary(max_size=8),
    trace_state=TEXTS,
    parent_span_id=st.binary(max_size=8),
    flags=st.integers(0, 2**32 - 1),
    name=TEXTS,
    kind=st.integers(0, 5),
    start_time_unix_nano=NUMBERS,
    end_time_unix_nano=NUMBERS,
    attributes=ATTRIBUTES,
    dropped_attributes_count=st.integers(0, 2**32 - 1),
    events=st.lists(st.builds(Span.Event, time_unix_nano=NUMBERS, name=TEXTS, attributes=ATTRIBUTES), max_size=2),
    links=st.lists(st.builds(Span.Link, trace_id=st.binary(max_size=16), attributes=ATTRIBUTES), max_size=2),
    status=st.builds(Status, message=TEXTS, code=st.integers(0, 2)),
)
RECORDS = st.builds(
    LogRecord,
    time_unix_nano=NUMBERS,
    severity_number=st.integers(0, 24),
    body=VALUES,
    attributes=ATTRIBUTES,
    trace_id=st.binary(max_size=16),
    event_name=TEXTS,
)


@given(SPANS | RECORDS)
def test_a_message_is_the_same_after_json(message):
    """A message as JSON, through text, and back is the same message; checking what is canonical changes nothing."""
    document = document_of(message)
    read = read_json(orjson.dumps(document))
    assert checked(read, message.DESCRIPTOR) == document
    again = type(message)()
    fill(again, read)
    assert again == message


@given(SPANS)
def test_json_is_protobufs_own_but_for_ids_and_enums(span):
    """Where OTLP does not say otherwise, our JSON is what protobuf's own writer gives."""
    ours = document_of(span)
    theirs = json_format.MessageToDict(span, use_integers_for_enums=True)
    for document in (theirs, *theirs.get("links", ())):
        for field in {"traceId", "spanId", "parentSpanId"} & document.keys():
            document[field] = base64.b64decode(document[field]).hex()
    assert _without_empty_values(ours) == _without_empty_values(theirs)


def _without_empty_values(document):
    """The document without what means the same whether it is said or not; numbers of either kind are equal."""
    if isinstance(document, dict):
        items = {key: _without_empty_values(value) for key, value in document.items()}
        return {key: value for key, value in items.items() if not (key in ("key", "value") and value in ("", {}))}
    return [_without_empty_values(item) for item in document] if isinstance(document, list) else document


def an_attribute(**value):
    """The part of a span that is one attribute."""
    return {"attributes": [{"key": "a", "value": value}]}


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"kind": "SPAN_KIND_CLIENT"}, {"kind": 3}),
        ({"kind": 77}, {"kind": 77}),
        ({"startTimeUnixNano": 5}, {"startTimeUnixNano": "5"}),
        ({"startTimeUnixNano": 5.0}, {"startTimeUnixNano": "5"}),
        ({"traceId": "ABCDEF"}, {"traceId": "abcdef"}),
        ({"name": None, "links": None, "status": None}, {}),
        ({"unheardOf": [{"deep": 1}], "trace_id": "ab", "keyStrindex": 1}, {}),
        ({"attributes": [{}]}, {"attributes": [{"key": "", "value": {}}]}),
        (an_attribute(bytesValue="_-8"), an_attribute(bytesValue="/+8=")),
        (an_attribute(doubleValue="1.5"), an_attribute(doubleValue=1.5)),
    ],
)
def test_what_senders_may_say_in_several_ways_is_read_in_one(said, meant):
    """Numbers as texts or not, enums by name, ids in capitals, null, unknown fields: all have one canonical form."""
    assert checked(said, Span.DESCRIPTOR) == meant


def test_numbers_that_are_not_finite_have_words():
    """NaN and the infinities go through JSON as ProtoJSON's words, and come back."""
    for value, word in [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")]:
        document = document_of(AnyValue(double_value=value))
        assert document == checked(document, AnyValue.DESCRIPTOR) == {"doubleValue": word}
        again = AnyValue()
        fill(again, document)
        assert struct.pack("d", again.double_value) == struct.pack("d", value)


def test_a_refusal_says_where(request_with_a_bad_event):
    """The message names the place as one would write it in code."""
    with pytest.raises(Malformed) as refusal:
        checked(request_with_a_bad_event, ExportTraceServiceRequest.DESCRIPTOR)
    assert str(refusal.value) == (
        "resourceSpans[0].scopeSpans[0].spans[1].events[0].timeUnixNano: a whole number belongs here, not true"
    )


@pytest.fixture
def request_with_a_bad_event():
    """A request whose second span has an event that is wrong."""
    return request("/v1/traces", [a_span(1), a_span(2, events=[{"timeUnixNano": True}])])


@pytest.mark.parametrize(("signal", "make"), [(TRACES, a_span), (LOGS, a_record)])
def test_both_encodings_give_the_same_lines(signal, make):
    """The spool holds the same whether a request came as JSON or as protobuf."""
    document = request(signal.path, [make(number) for number in range(1, 4)])
    message = signal.request()
    fill(message, document)
    as_json = read_json_request(orjson.dumps(document), signal)
    as_protobuf = read_protobuf(message.SerializeToString(), signal)
    assert [orjson.loads(line.text) for line in as_json.lines] == [
        orjson.loads(line.text) for line in as_protobuf.lines
    ]


def test_a_foreign_record_gets_the_same_id_whenever_it_comes():
    """The id is a hash of the record, its resource and its scope: sent again it is the same, another is another."""
    ids = [
        attribute["value"]["stringValue"]
        for _ in range(2)
        for line in read_document(request("/v1/logs", [a_record(1), a_record(2)]), LOGS).lines
        for record in orjson.loads(line.text)["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
        for attribute in record["attributes"]
        if attribute["key"] == "tracetune.record_id"
    ]
    assert len(ids) == 4
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2
    message = ExportLogsServiceRequest()
    fill(message, request("/v1/logs", [a_record(1)]))
    assert ids[0].encode() in read_protobuf(message.SerializeToString(), LOGS).lines[0].text


@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=40),
    resource_size=st.sampled_from([0, 100, 300_000, 3_000_000]),
)
def test_lines_hold_every_span_once_and_stay_moderate(sizes, resource_size):
    """However large the resource, spans keep their order, no line repeats its resource for too many, all parse."""
    spans = [a_span(number, name="x" * (1 + size * 100)) for number, size in enumerate(sizes, 1)]
    document = request("/v1/traces", spans)
    document["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"] = "r" * resource_size
    lines = read_document(document, TRACES).lines
    found = []
    for line in lines:
        [scope] = orjson.loads(line.text)["resourceSpans"][0]["scopeSpans"]
        found += scope["spans"]
        assert line.spans == len(scope["spans"])
        assert (line.spans - 1) * resource_size <= 4 * LINE_BYTES
        assert len(line.text) <= LINE_BYTES + resource_size + 302_000
    assert found == spans
