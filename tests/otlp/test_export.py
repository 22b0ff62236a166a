"""`tracetune export`: what a store holds arrives at other OTLP servers, whatever those answer."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest
from cli.conftest import Finished
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from otlp.serving import a_record, a_span, attribute, http, request
from store.spool_lines import a_rollout, record, span, tables_of, write_segment

import tracetune as tt
from tracetune.adapters.otlp import Receiver, Sender
from tracetune.errors import ExportError
from tracetune.grouping import export_otlp as export
from tracetune.tracer import names

OTHER_RECORDS = [
    record(names.RECORD_POLICY, "p1", run="try-1", version="try-1@3", step=3, prompts={"hop": "Go on."}),
    record(names.RECORD_JOB, "j1", run="try-2", job_id="7", status="done", detail={"cost": 0.5}, unheard_of=[1, 2]),
    record(names.RECORD_SUPERSEDE, "s1", run="try-1", from_step=9),
    record(
        names.RECORD_BATCH, "b1", run="try-1", step=3, policy_version="try-1@2",
        left_out={"constant": 1}, report={"loss": 1e-7},
        members=[
            {"group_id": "g", "slot": 1, "call_id": "c", "rollout_id": "r0", "reward": 1.0, "advantage": -0.5},
            {"group_id": "g", "slot": 0, "call_id": "d", "rollout_id": "r1", "reward": 0.0, "advantage": None},
        ],
    ),
]  # fmt: skip
FOREIGN = [
    a_span(700, status={"code": 2, "message": "no"}, events=[{"timeUnixNano": "5", "name": "seen"}], flags=256),
    a_span(701, parentSpanId=f"{700:016x}", traceId=f"{700:032x}", attributes=[attribute("gen_ai.provider.name", "p")]),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The path of a store with two rollouts, records of every kind, and what others sent."""
    path = tmp_path_factory.mktemp("source") / "source.duckdb"
    lines = [*a_rollout(), *a_rollout(1), *OTHER_RECORDS, span("alone", 5, trace_id=77, at=9)]
    write_segment(path, "1-1-a", *lines)
    write_segment(path, "2-1-a", orjson.dumps(request("/v1/traces", FOREIGN)))
    with tt.record(path, run="recorded"), tt.rollout(example_id="q1"):
        agent("who?")
        tt.reward(0.5)
    tt.Store(path).ingest()
    return path


@tt.program
def agent(question: str) -> str:
    """A program that fails to parse once, with tools and choices."""
    tools = [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": None, "tool_calls": tools}]
    tt.record_call(messages=messages, completion="carl", model="mine")
    return "carl"


class Server(ThreadingHTTPServer):
    """An OTLP server that answers as it is told to.

    Attributes:
        answers: for each path, the answers that come first: status, headers and content.
        always: for each path, the answer to every other request.
        received: the path, headers and unpacked body of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.always: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.received: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[str]:
        """The names of the spans that were sent, in order."""
        return [
            item.name
            for path, _, content in self.received
            if path.endswith("/v1/traces")
            for resource in ExportTraceServiceRequest.FromString(content).resource_spans
            for scope in resource.scope_spans
            for item in scope.spans
        ]


class Handler(BaseHTTPRequestHandler):
    """One request to a `Server`."""

    server: Server

    def do_POST(self) -> None:
        """Note the request, and give the answer that is next."""
        content = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
        self.server.received.append((self.path, {key.lower(): value for key, value in self.headers.items()}, content))
        first = self.server.answers.get(self.path)
        status, told, answer = first.pop(0) if first else self.server.always.get(self.path, (200, {}, b""))
        self.send_response(status)
        for name, value in {**told, "content-length": str(len(answer))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def a_server() -> Iterator[Server]:
    """A server that runs until the end of the block."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("page_rows", [2])
def test_a_store_that_is_sent_to_a_receiver_has_a_twin(tracetune, tmp_path, source, monkeypatch, page_rows):
    """Every row of every table, and so of every view, is the same; sent back, all of it is known."""
    monkeypatch.setattr(export, "PAGE_ROWS", page_rows)
    twin = tmp_path / "twin.duckdb"
    with Receiver(twin, port=0) as receiver:
        done = tracetune("export", source, "--otlp", receiver.url)
        assert done == Finished(0, "", f"{receiver.url} has taken 15 spans and 19 log records\n")
    tt.Store(twin).ingest()
    tables, twins = tables_of(source), tables_of(twin)
    del tables["segments"], twins["segments"]
    assert twins == tables
    views = ("rollouts", "calls", "groups", "group_members")
    for view in views:
        query = f"FROM {view} ORDER BY ALL"
        assert tt.Store(twin).sql(query).rows() == tt.Store(source).sql(query).rows()
    with Receiver(source, port=0) as receiver:
        tracetune("export", twin, "--otlp", receiver.url)
    report = tt.Store(source).ingest()
    assert (report.spans, report.records, report.repeated, report.conflicting) == (0, 0, 34, 0)


def test_spans_of_others_leave_as_they_came(tmp_path):
    """Field by field, what a server gets is what was received, ids, kinds, events, scopes and resources included."""
    path = tmp_path / "source.duckdb"
    came = request("/v1/traces", FOREIGN)
    write_segment(path, "1-1-a", orjson.dumps(came))
    [document] = export.Export(tt.Store(path)).documents()
    assert document["resourceSpans"][0]["resource"] == came["resourceSpans"][0]["resource"]
    [went], [arrived] = document["resourceSpans"][0]["scopeSpans"], came["resourceSpans"][0]["scopeSpans"]
    assert went["scope"] == arrived["scope"]
    assert went["spans"] == [{"status": {}, **arrived_span} for arrived_span in arrived["spans"]]


def test_only_the_rollouts_that_are_asked_for_are_sent(tracetune, source):
    """A condition selects rollouts: their spans, and what was recorded of them and of their run."""
    with a_server() as server:
        where = "run = 'try-1' AND rollout_index = 1 -- a comment"
        done = tracetune("export", source, "--otlp", server.url, "--where", where)
        assert done == Finished(0, "", f"{server.url} has taken 5 spans and 9 log records\n")
        assert sorted(server.spans()) == ["chat policy", "chat policy", "chat policy", "find", "hop"]


def test_headers_and_whole_addresses(tracetune, source):
    """The address may name /v1/traces already, under any prefix; each header goes with every request."""
    with a_server() as server:
        address = f"{server.url}/api/otel/v1/traces"
        options = ["--header", "authorization=Basic YTpi", "--header", "x-project = try=1"]
        assert tracetune("export", source, "--otlp", address, *options).status == 0
        assert {path for path, _, _ in server.received} == {"/api/otel/v1/traces", "/api/otel/v1/logs"}
        assert {(told["authorization"], told["x-project"]) for _, told, _ in server.received} == {
            ("Basic YTpi", "try=1")
        }
        assert {told["content-type"] for _, told, _ in server.received} == {"application/x-protobuf"}


def test_spans_are_sent_in_order_of_time(tracetune, tmp_path):
    """Whatever order they came in, and whichever trace they belong to."""
    path = tmp_path / "source.duckdb"
    spans = [a_span(number, traceId=f"{number % 3 + 1:032x}", name=f"{number % 3}:{number}") for number in range(1, 10)]
    write_segment(path, "1-1-a", orjson.dumps(request("/v1/traces", spans[::-1])))
    with a_server() as server:
        tracetune("export", path, "--otlp", server.url)
        assert server.spans() == ["1:1", "2:2", "0:3", "1:4", "2:5", "0:6", "1:7", "2:8", "0:9"]


def test_a_server_without_logs_gets_the_spans(tracetune, source):
    """Where /v1/logs is not served the records stay here, and that is said once."""
    with a_server() as server:
        server.always["/v1/logs"] = (404, {}, b"")
        done = tracetune("export", source, "--otlp", server.url)
        assert done == Finished(
            0,
            "",
            f"{server.url} has taken 15 spans and 0 log records\n"
            "it takes no log records, so 19 scores and other records were not sent\n",
        )
        assert [path for path, _, _ in server.received].count("/v1/logs") == 1


def test_what_is_refused_is_said(tracetune, source):
    """A partial success is reported with the server's reason, and the exit status is 1."""
    partial = ExportTracePartialSuccess(rejected_spans=4, error_message="too old")
    content = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    with a_server() as server:
        server.always["/v1/traces"] = (200, {"content-type": "application/x-protobuf"}, content)
        done = tracetune("export", source, "--otlp", server.url)
        assert done == Finished(
            1, "", f"{server.url} has taken 11 spans and 19 log records\nit has refused 4: too old\n"
        )


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/x-protobuf", Status(code=16, message="no such key").SerializeToString()),
        ("application/json", b'{"code": 16, "message": "no such key"}'),
        ("text/plain", b"no such key\n"),
    ],
)
def test_a_server_that_says_no_is_quoted(tracetune, source, kind, content):
    """The sentence has the address, the status and the server's own words, and nothing is sent again."""
    with a_server() as server:
        server.always["/v1/traces"] = (401, {"content-type": kind}, content)
        done = tracetune("export", source, "--otlp", server.url)
        words = f"error: {server.url}/v1/traces answered 401 Unauthorized (no such key)\n"
        assert done == Finished(1, "", words)
        assert len(server.received) == 1


DOCUMENT = request("/v1/traces", [a_span(1)])


def test_what_a_server_cannot_take_now_is_sent_again():
    """After 503, 429 or a broken connection the same request comes again, when the server asked for it."""
    with a_server() as server, Sender(server.url, first_wait=0.01) as sender:
        told = ["0", "Thu, 01 Jan 1970 00:00:00 GMT", "nan", "soon", "-1"]
        server.answers["/v1/traces"] = [*((503, {"retry-after": when}, b"") for when in told), (429, {}, b"")]
        sender.send(DOCUMENT)
        assert (sender.sent.spans, len(server.received)) == (1, 7)
        assert len({content for _, _, content in server.received}) == 1


def test_a_server_that_never_recovers_is_given_up():
    """After several attempts the last answer is reported."""
    with a_server() as server, Sender(server.url, first_wait=0.001) as sender:
        server.always["/v1/traces"] = (503, {}, b"")
        with pytest.raises(ExportError, match=r"answered 503 Service Unavailable$"):
            sender.send(DOCUMENT)
        assert len(server.received) == 8


def test_a_server_that_goes_away_is_waited_for(tmp_path):
    """A server that was there and is restarted gets the rest."""
    with a_server() as first:
        sender = Sender(first.url, first_wait=0.5)
        sender.send(DOCUMENT)
        port = first.server_port
    restarted = Receiver(tmp_path / "traces.duckdb", port=port)
    threading.Timer(0.2, restarted.start).start()
    with sender:
        sender.send(DOCUMENT)
    restarted.stop()
    assert (sender.sent.spans, restarted.counts.spans) == (2, 1)


NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [NOBODY],
            f"{NOBODY}/v1/traces cannot be reached ([Errno 111] Connection refused); "
            "start the server there, or give another address",
        ),
        (["127.0.0.1:1"], "'127.0.0.1:1' is not an address to send to; give one such as http://127.0.0.1:4318"),
        ([NOBODY, "--header", "x"], "a header is given as NAME=VALUE, not as 'x'"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_a_sentence(tracetune, source, options, message):
    """No server, no address, no header: one line says what to do."""
    assert tracetune("export", source, "--otlp", *options) == Finished(1, "", f"error: {message}\n")


def test_a_header_that_http_cannot_carry_is_refused(tracetune, source):
    """The sentence names the header, not the server."""
    with a_server() as server:
        done = tracetune("export", source, "--otlp", server.url, "--header", "x y=1")
        assert done == Finished(1, "", "error: a header cannot be sent: Illegal header name b'x y'\n")
        assert server.received == []


def test_a_condition_that_is_no_sql_is_refused(tracetune, source):
    """DuckDB's reason is given, and nothing is sent."""
    with a_server() as server:
        done = tracetune("export", source, "--otlp", server.url, "--where", "colour = trace_id")
        assert (done.status, done.stdout, server.received) == (1, "", [])
        assert done.stderr.startswith(
            "error: nothing is selected with where='colour = trace_id': Binder Error: Referenced column \"colour\" not"
        )


def test_a_record_of_somebody_else_goes_back_out(tmp_path):
    """A foreign log record keeps its name, body and attributes through two stores."""
    first, second = tmp_path / "first.duckdb", tmp_path / "second.duckdb"
    with Receiver(first, port=0) as receiver:
        http.post(
            f"{receiver.url}/v1/logs",
            json=request("/v1/logs", [a_record(1, severityNumber=9, traceId="ab" * 16), a_record(2, eventName="")]),
        )
    with Receiver(second, port=0) as receiver, Sender(receiver.url) as sender:
        for document in export.Export(tt.Store(first)).documents():
            sender.send(document)
    query = "SELECT * FROM other_records ORDER BY ALL"
    assert len(tt.Store(first).sql(query)) == 2
    assert tt.Store(second).sql(query).rows() == tt.Store(first).sql(query).rows()
