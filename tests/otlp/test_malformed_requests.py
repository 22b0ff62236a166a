"""Whatever is sent to a receiver, it answers with a refusal, lives, and loses nothing of anybody else's."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from otlp.malformed import PARTIAL, REFUSED, Case, corpus
from otlp.serving import JSON, PROTOBUF, a_span, body, good, headers, packed, request, serving

from tracetune import Store
from tracetune.adapters.otlp import Receiver

CORPUS = corpus()
GOOD_FROM = 1000  # the ids of the good neighbours


def test_the_corpus_is_large():
    """There are some four hundred different bodies, of each kind, path and encoding."""
    kinds = Counter((case.path, case.encoding, case.expected) for case in CORPUS)
    assert len(kinds) == 8
    assert len({case.content for case in CORPUS}) >= 400


def outcome(case: Case, answer: httpx.Response) -> str:
    """What became of a bad request, in the words of the corpus."""
    if answer.status_code == 200:
        if case.encoding == JSON:
            partial = answer.json().get("partialSuccess", {})
            return PARTIAL if {"1"} == {value for key, value in partial.items() if key.startswith("rej")} else "taken"
        rejected = ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans
        return PARTIAL if rejected == 1 else "taken"
    if not 400 <= answer.status_code < 500:
        return f"status {answer.status_code}"
    told = answer.json()["message"] if case.encoding == JSON else answer.content[4:].decode()
    return REFUSED if told else "refused without a word"


def test_every_malformed_request_is_refused_and_no_neighbour_is_lost(tmp_path):
    """Each of the corpus is refused, or its one bad item is, while good requests beside and after it are kept."""
    store = tmp_path / "traces.duckdb"
    with serving(store) as served, httpx.Client(base_url=served.url) as bad, httpx.Client(base_url=served.url) as other:

        def send_good(client: httpx.Client, number: int) -> int:
            encoding = (JSON, PROTOBUF)[number % 2]
            content = body("/v1/traces", good("/v1/traces", number), encoding)
            return client.post("/v1/traces", content=content, headers=headers(encoding)).status_code

        wrong = {}
        with ThreadPoolExecutor(1) as beside:
            for place, case in enumerate(CORPUS):
                number = GOOD_FROM + 2 * place
                meanwhile = beside.submit(send_good, other, number)
                content = packed(case.content) if place % 5 == 0 else case.content
                told = headers(case.encoding, packed=place % 5 == 0)
                answer = bad.post(case.path, content=content, headers=told)
                if (outcome(case, answer), meanwhile.result(), send_good(bad, number + 1)) != (case.expected, 200, 200):
                    wrong[case.path, case.encoding, case.name] = (answer.status_code, answer.content[:200])
        assert wrong == {}
        assert served.stop()[0] == 0
    opened = Store(store)
    assert opened.ingest().rejected == 0
    assert opened.sql("SELECT sum(rejected) + sum(conflicting) AS n FROM segments").rows() == [{"n": 0}]
    neighbours = f"SELECT count(DISTINCT span_id) AS n FROM spans WHERE (attributes ->> '$.number')::INT >= {GOOD_FROM}"
    assert opened.sql(neighbours).rows() == [{"n": 2 * len(CORPUS)}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A receiver for guesses, and its store."""
    store = tmp_path_factory.mktemp("guesses") / "traces.duckdb"
    with Receiver(store, port=0) as receiver, httpx.Client(base_url=receiver.url) as client:
        yield client, store


GUESSES = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
ANSWERS = {200, 400, 413}


@GUESSES
@given(data=st.data(), path=st.sampled_from(["/v1/traces", "/v1/logs"]), encoding=st.sampled_from([JSON, PROTOBUF]))
def test_bodies_with_bytes_changed_anywhere_do_no_harm(place, data, path, encoding):
    """Whatever bytes are cut out, put in or changed, the answer is a plain yes or no."""
    client, _ = place
    content = bytearray(body(path, good(path, 1), encoding))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 8)))
        content[start:end] = data.draw(st.binary(max_size=8))
    answer = client.post(path, content=bytes(content), headers=headers(encoding))
    assert answer.status_code in ANSWERS


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON, with OTLP's own keys more often than others."""
    keys = st.sampled_from(["stringValue", "intValue", "values", "key", "value", "kvlistValue", "arrayValue", "x", ""])
    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.just("1")
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


SPAN_PLACES = ["traceId", "spanId", "parentSpanId", "name", "kind", "startTimeUnixNano", "endTimeUnixNano", "status",
               "attributes", "events", "links", "flags", "traceState", "droppedEventsCount"]  # fmt: skip


@GUESSES
@given(field=st.sampled_from(SPAN_PLACES), value=json_values(), number=st.integers(1, 2**40))
def test_any_json_in_any_field_costs_at_most_that_span(place, field, value, number):
    """The neighbour of a span in which anything may stand is always taken, and what is taken is never set aside."""
    client, _ = place
    document = request("/v1/traces", [a_span(number, **{field: value}), a_span(number + 1)])
    answer = client.post("/v1/traces", content=orjson.dumps(document), headers=headers(JSON))
    assert answer.status_code == 200
    assert answer.json() == {} or answer.json()["partialSuccess"]["rejectedSpans"] == "1"


def test_what_was_taken_of_the_guesses_is_in_the_store(place):
    """Nothing that the receiver acknowledged is refused by the store afterwards."""
    client, store = place
    assert client.get("/healthz").status_code == 200
    assert Store(store).sql("SELECT sum(rejected) AS n FROM segments").rows() == [{"n": 0}]
