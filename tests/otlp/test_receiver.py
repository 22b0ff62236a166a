"""`tracetune serve`: what exporters send is found by SQL, and nothing is acknowledged that is not kept."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.common.http import Compression as JsonCompression
from opentelemetry.exporter.otlp.json.http._log_exporter import OTLPLogExporter as JsonLogExporter
from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter as JsonSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otlp.serving import JSON, PROTOBUF, a_span, body, good, headers, http, packed, request, segments_of, serving

from tracetune import Store
from tracetune.adapters.otlp import Receiver, bodies
from tracetune.adapters.otlp.bodies import BODY_BYTES
from tracetune.errors import InvalidInput, ReceiverError

SPANS = 300

EXPORTERS = {
    "protobuf": lambda url: OTLPSpanExporter(f"{url}/v1/traces"),
    "protobuf, gzip": lambda url: OTLPSpanExporter(f"{url}/v1/traces", compression=Compression.Gzip),
    "json": lambda url: JsonSpanExporter(f"{url}/v1/traces"),
    "json, gzip": lambda url: JsonSpanExporter(f"{url}/v1/traces", compression=JsonCompression.GZIP),
}
LOG_EXPORTERS = {
    "protobuf": lambda url: OTLPLogExporter(f"{url}/v1/logs"),
    "json": lambda url: JsonLogExporter(f"{url}/v1/logs"),
}


@pytest.fixture
def store(tmp_path):
    """The path of a store that is not there yet."""
    return tmp_path / "traces.duckdb"


@pytest.fixture
def receiver(store):
    """A receiver in this process."""
    with Receiver(store, port=0) as started:
        yield started


@pytest.fixture(scope="module")
def shared_receiver(tmp_path_factory):
    """A receiver for requests that it does not take."""
    with Receiver(tmp_path_factory.mktemp("shared") / "traces.duckdb", port=0) as started:
        yield started


def spans_in(store):
    """The names of the spans that a store has."""
    return sorted(row["name"] for row in Store(store).sql("SELECT name FROM spans").rows())


def test_every_span_of_the_official_exporters_is_found_by_sql(store):
    """Whatever the encoding, each span is there once, with its kind, parent, attributes, events and status."""
    with serving(store) as served:
        for exporter, made in EXPORTERS.items():
            provider = TracerProvider(resource=Resource({"service.name": exporter}))
            provider.add_span_processor(BatchSpanProcessor(made(served.url), schedule_delay_millis=100))
            tracer = provider.get_tracer("a library", "1.0")
            for number in range(SPANS // 2):
                with tracer.start_as_current_span(f"parent {number}"), tracer.start_as_current_span("chat") as span:
                    span.set_attributes({"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "n": number})
                    span.set_attributes(
                        {"ratio": 0.5, "flag": True, "list": ["ä", "b"], "gen_ai.usage.input_tokens": 7}
                    )
                    span.add_event("seen", {"n": number})
            provider.shutdown()
        assert served.stop() == (0, f"received {SPANS * len(EXPORTERS)} spans and 0 log records\n")
    found = Store(store).sql(
        """
        SELECT child.resource -> '$.attributes[*].value.stringValue' ->> 0 AS exporter, child.attributes ->> '$.n' AS n,
               parent.name AS parent, child.kind, child.request_model, child.input_tokens, child.status,
               child.attributes ->> '$.list' AS list, child.attributes ->> '$.ratio' AS ratio,
               child.attributes ->> '$.flag' AS flag, child.scope, child.events ->> '$[0].name' AS event
        FROM spans AS child JOIN spans AS parent ON child.parent_span_id = parent.span_id
        """
    )
    same = {"kind": "lm", "request_model": "m", "input_tokens": 7, "status": "ok", "list": '["ä","b"]', "ratio": "0.5"}
    expected = [
        {"exporter": exporter, "n": str(number), "parent": f"parent {number}", **same, "flag": "true"}
        | {"scope": "a library", "event": "seen"}
        for exporter in EXPORTERS
        for number in range(SPANS // 2)
    ]
    assert sorted(found.rows(), key=str) == sorted(expected, key=str)


@pytest.mark.parametrize("exporter", LOG_EXPORTERS)
def test_every_log_record_of_an_official_exporter_is_found_by_sql(store, receiver, exporter):
    """Records keep their event name, body and attributes, and each has an id of its own."""
    provider = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(LOG_EXPORTERS[exporter](receiver.url)))
    logger = provider.get_logger("a library")
    for number in range(20):
        record = LogRecord(timestamp=number + 1, event_name="seen", body="same", attributes={"half": number // 2})
        logger.emit(record)
    provider.shutdown()
    rows = Store(store).sql("SELECT DISTINCT record_id, event_name, body, rest FROM other_records").rows()
    assert len(rows) == 20
    assert {(row["event_name"], row["body"]) for row in rows} == {("seen", "same")}
    assert sorted(row["rest"] for row in rows) == sorted(f'{{"half":{number // 2}}}' for number in range(20))


def test_what_was_acknowledged_survives_a_kill(store):
    """After kill -9 right behind the answer, the span is in the store."""
    with serving(store) as served:
        for number in range(1, 6):
            answer = http.post(f"{served.url}/v1/traces", json=good("/v1/traces", number))
            assert (answer.status_code, answer.json()) == (200, {})
        served.process.kill()
        served.process.wait()
    assert spans_in(store) == [f"span {number}" for number in range(1, 6)]


def test_a_stop_closes_the_segment_whole(store):
    """Interrupted, it ends with status 0, and its segment has its final name; SIGTERM does the same above."""
    with serving(store) as served:
        http.post(f"{served.url}/v1/traces", json=good("/v1/traces", 1))
        assert served.stop(signal.SIGINT) == (0, "received 1 spans and 0 log records\n")
    assert [name.endswith(".open.jsonl") for name in segments_of(store)] == [False]


def test_two_receivers_share_a_store(store):
    """Two processes receive for one store at once, and every span of both is there once."""
    with serving(store) as one, serving(store) as other, ThreadPoolExecutor(8) as senders:
        sent = [
            senders.submit(http.post, f"{served.url}/v1/traces", json=good("/v1/traces", number))
            for number, served in enumerate([one, other] * 40, 1)
        ]
        assert {future.result().status_code for future in sent} == {200}
    assert spans_in(store) == sorted(f"span {number}" for number in range(1, 81))


def test_a_bad_span_is_refused_alone(store, receiver):
    """Its neighbours are kept, and the answer counts what is not, in the encoding of the request."""
    items = [
        a_span(1),
        a_span(2, traceId="00" * 16),
        a_span(3, spanId="00ff"),
        a_span(4, startTimeUnixNano="0"),
        a_span(5, parentSpanId="0" * 16),
    ]
    document = request("/v1/traces", items)
    url = f"{receiver.url}/v1/traces"
    message = "3 spans were refused; the first: resourceSpans[0].scopeSpans[0].spans[1]: its traceId is all zero"
    as_json = http.post(url, json=document)
    assert (as_json.status_code, as_json.headers["content-type"]) == (200, JSON)
    assert as_json.json() == {"partialSuccess": {"rejectedSpans": "3", "errorMessage": message}}
    as_protobuf = http.post(url, content=body("/v1/traces", document, PROTOBUF), headers=headers(PROTOBUF))
    assert (as_protobuf.status_code, as_protobuf.headers["content-type"]) == (200, PROTOBUF)
    text = message.encode()
    partial = b"\x08\x03\x12" + bytes([len(text)]) + text
    assert as_protobuf.content == b"\x0a" + bytes([len(partial)]) + partial
    rows = Store(store).sql("SELECT name, parent_span_id FROM spans ORDER BY name").rows()
    assert rows == [{"name": "span 1", "parent_span_id": None}, {"name": "span 5", "parent_span_id": None}]


REFUSED = {
    "no such place": ("POST", "/v1/profiles", {}, b"", 404, 12, "POST /v1/profiles is not served here"),
    "metrics": ("POST", "/v1/metrics", headers(JSON), b"{}", 404, 12, "OTEL_METRICS_EXPORTER=none"),
    "another method": ("GET", "/v1/traces", {}, b"", 405, 12, "GET /v1/traces is not served here"),
    "no type": ("POST", "/v1/traces", {}, b"{}", 415, 3, "application/x-protobuf or application/json"),
    "another type": ("POST", "/v1/traces", headers("text/plain"), b"{}", 415, 3, "not 'text/plain'"),
    "another packing": ("POST", "/v1/traces", {**headers(JSON), "content-encoding": "br"}, b"{}", 415, 3, "'br'"),
    "not packed": ("POST", "/v1/traces", headers(JSON, packed=True), b"{}", 400, 3, "not the gzip"),
    "cut short": ("POST", "/v1/logs", headers(JSON, packed=True), packed(b"{}")[:-3], 400, 3, "ends in the middle"),
    "too large": ("POST", "/v1/traces", headers(JSON), b" " * (BODY_BYTES + 1), 413, 8, f"{BODY_BYTES} bytes"),
    "a bomb": ("POST", "/v1/logs", headers(JSON, packed=True), packed(bytes(4 * BODY_BYTES)), 413, 8, "unpacked"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_is_not_taken_says_why(shared_receiver, case):
    """The answer has its own status, and a google.rpc.Status with a sentence in it."""
    method, path, asked, content, status, code, words = REFUSED[case]
    answer = http.request(method, shared_receiver.url + path, headers=asked, content=content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert words in answer.json()["message"]
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


def test_a_refusal_is_in_the_encoding_of_the_request(shared_receiver):
    """Protobuf is answered in protobuf."""
    answer = http.post(f"{shared_receiver.url}/v1/traces", content=b"{}", headers=headers(PROTOBUF))
    assert (answer.status_code, answer.headers["content-type"]) == (400, PROTOBUF)
    assert answer.content == b"\x08\x03\x12\x28not a protobuf ExportTraceServiceRequest"


def test_resources_that_would_fill_the_disk_are_refused(shared_receiver):
    """A small request whose large resource would be kept with each of a hundred thousand spans is too large."""
    least = {"traceId": "01" * 16, "startTimeUnixNano": 1, "endTimeUnixNano": 1}
    spans = [{**least, "spanId": f"{number:016x}"} for number in range(1, 9000)]
    document = request("/v1/traces", spans)
    document["resourceSpans"][0]["resource"]["attributes"][0]["value"]["stringValue"] = "x" * 70_000
    answer = http.post(f"{shared_receiver.url}/v1/traces", json=document, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (413, 8)


def test_long_requests_become_lines_of_moderate_length(store, receiver):
    """A request of several MB is cut into lines of about 1 MB, and is in the store whole."""
    spans = [a_span(number, name="x" * 10_000) for number in range(1, 501)]
    assert http.post(f"{receiver.url}/v1/traces", json=request("/v1/traces", spans), timeout=60).status_code == 200
    [segment] = store.with_name(store.name + ".spool").iterdir()
    assert [len(line) < 1_100_000 for line in segment.read_bytes().splitlines()] == [True] * 5
    assert Store(store).sql("SELECT count(*) AS n FROM spans").rows() == [{"n": 500}]


def test_a_sender_that_is_too_slow_is_told_so(store):
    """A body that does not come in time is answered with 408, and others are served meanwhile."""
    with Receiver(store, port=0, body_seconds=0.5) as receiver:
        host, port = receiver.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 9\r\n\r\n{"
            )
            assert http.post(f"{receiver.url}/v1/traces", json=good("/v1/traces", 1)).status_code == 200
            slow.settimeout(30)
            assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert spans_in(store) == ["span 1"]


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (b"GET /%0a%ff HTTP/1.1\r\nhost: [::1\r\nconnection: close\r\n\r\n", b"403"),
        (b"POST /v1/traces HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: \xff\r\nconnection: close\r\n\r\n", b"415"),
        (b"POST /v1/traces HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: many\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
    ],
)
def test_requests_that_are_hardly_http_are_refused(shared_receiver, told, status):
    """A host that is none, headers that are no text, and TLS where none is spoken get a plain answer."""
    host, port = shared_receiver.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sender:
        sender.sendall(told)
        assert sender.recv(1000).split(b" ", 2)[:2] == [b"HTTP/1.1", status]


def test_a_sender_that_hangs_up_does_no_harm(store, receiver):
    """A connection that is closed in the middle of a body leaves the receiver as it was."""
    host, port = receiver.url.removeprefix("http://").split(":")
    for _ in range(5):
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(
                b"POST /v1/traces HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                b"content-length: 9\r\n\r\n{"
            )
    assert http.post(f"{receiver.url}/v1/traces", json=good("/v1/traces", 1)).status_code == 200
    assert spans_in(store) == ["span 1"]


def test_more_than_fits_at_once_is_asked_to_come_again(store, monkeypatch):
    """Where all bodies together take too much memory, the one too many is answered with 503."""
    monkeypatch.setattr(bodies, "BUFFERED_BYTES", 2000)
    with Receiver(store, port=0) as receiver:
        content = body("/v1/traces", request("/v1/traces", [a_span(1, name="x" * 2000)]), JSON)
        answer = http.post(f"{receiver.url}/v1/traces", content=content, headers=headers(JSON))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        for number in range(1, 21):  # what is dealt with gives its room back
            assert http.post(f"{receiver.url}/v1/traces", json=good("/v1/traces", number)).status_code == 200
    assert len(spans_in(store)) == 20


def test_a_full_disk_loses_nothing(store):
    """While the spool cannot be written, senders are told to come again; what they send then is kept once."""
    Store(store)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))

    with serving(store, preexec_fn=limit) as served, httpx.Client(base_url=served.url) as client:
        statuses = []
        for number in range(1, 11):
            answer = client.post("/v1/traces", json=good("/v1/traces", number))
            statuses.append(answer.status_code)
            assert answer.headers.get("retry-after") == (None if answer.status_code == 200 else "5")
        assert set(statuses) == {200, 503}
        assert answer.json()["code"] == 14
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, unlimited)
        for number in range(1, 11):
            assert client.post("/v1/traces", json=good("/v1/traces", number)).status_code == 200
    assert spans_in(store) == sorted(f"span {number}" for number in range(1, 11))


def test_an_address_that_others_can_reach_needs_a_token(store):
    """Without one it does not start, and says why."""
    command = [sys.executable, "-m", "tracetune.cli", "serve", str(store), "--host", "0.0.0.0", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "TRACETUNE_TOKEN"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: 0.0.0.0 can be reached from other machines, and anybody there could write into the store; "
        "give a token that senders must show, or listen at 127.0.0.1\n"
    )


def test_a_token_is_asked_for(store):
    """Only senders with the very token are let in; whether it lives, anybody may ask."""
    environment = {**os.environ, "TRACETUNE_TOKEN": "s3cret"}
    with serving(store, "--host", "0.0.0.0", env=environment) as served:
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        for shown in [{}, {"authorization": "Bearer s3cre"}, {"authorization": "s3cret"}, {"authorization": b"\xff"}]:
            answer = http.post(f"{url}/v1/traces", json=good("/v1/traces", 1), headers=shown)
            assert (answer.status_code, answer.json()["code"]) == (401, 16)
        assert http.get(f"{url}/healthz").json() == {"status": "ok"}
        shown = {"authorization": "Bearer s3cret"}
        assert http.post(f"{url}/v1/traces", json=good("/v1/traces", 2), headers=shown).status_code == 200
    assert spans_in(store) == ["span 2"]


@pytest.mark.parametrize("token", ["", "two words", "schlüssel", "line\n"])
def test_a_token_that_no_header_can_carry_is_refused(store, token):
    """A token that would shut everybody out is refused when the receiver is made."""
    with pytest.raises(InvalidInput, match="a token is printable ASCII"):
        Receiver(store, token=token)


def test_an_address_that_is_taken_is_said(store, receiver):
    """A second receiver at the same port does not start."""
    port = int(receiver.url.rpartition(":")[2])
    with pytest.raises(ReceiverError, match=f"can't listen at 127.0.0.1:{port}: Address already in use"):
        Receiver(store, port=port).start()
    with pytest.raises(ReceiverError, match="has been started before"):
        receiver.start()


def test_what_is_on_its_way_when_it_stops_is_answered(store):
    """Requests that came before the stop are written and acknowledged, or not acknowledged at all."""
    acknowledged = []
    receiver = Receiver(store, port=0).start()

    def send(first: int) -> None:
        with httpx.Client(base_url=receiver.url) as client:
            for number in range(first, first + 1000):
                try:
                    if client.post("/v1/traces", json=good("/v1/traces", number)).status_code == 200:
                        acknowledged.append(f"span {number}")
                except httpx.TransportError:
                    return

    senders = [threading.Thread(target=send, args=[first]) for first in (1, 10_001, 20_001)]
    for sender in senders:
        sender.start()
    while len(acknowledged) < 30:
        time.sleep(0.01)
    receiver.stop()
    for sender in senders:
        sender.join()
    assert set(acknowledged) <= set(spans_in(store))


def test_the_receiver_says_nothing_by_itself(store, receiver, caplog, capfd):
    """Requests of any kind leave no trace in logs or on the terminal."""
    with caplog.at_level(logging.WARNING):
        for content in (b"{", b"{}"):
            http.post(f"{receiver.url}/v1/traces", content=content, headers=headers(JSON))
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
