"""Every address that is opened here: half a request keeps nobody waiting, and no page in a browser is served."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import openai
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from starlette.responses import PlainTextResponse

from tracetune import Store
from tracetune.adapters.otlp import Receiver
from tracetune.errors import EndpointError
from tracetune.http import Server
from tracetune.trainers.endpoint.proxy import ProxyEndpoint
from tracetune.types import Upstream

SERVED = PlainTextResponse("served")
HALF = b"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Ty"


@contextmanager
def a_server(application: Any = SERVED, **limits: float) -> Iterator[Server]:
    """A server of an application, with short limits."""
    server = Server(
        "the test", "127.0.0.1", 0, error=EndpointError, keep_alive_seconds=600, farewell_seconds=1, **limits
    )
    server.start(application)
    yield server
    server.stop()


def connected(url: str) -> socket.socket:
    """A connection to an address."""
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port))
    connection.settimeout(60)
    return connection


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    content = b""
    while chunk := connection.recv(4096):
        content += chunk
    return content


def test_250_half_sent_heads_are_closed_and_an_exporter_is_served_meanwhile(tmp_path):
    """Each is told 408 when its time is over; spans that are sent beside them are in the store."""
    receiver = Receiver(tmp_path / "traces.duckdb", port=0)
    receiver._server._head_seconds = 2.0
    with receiver, ExitStack() as stack:
        halves = [stack.enter_context(connected(receiver.url)) for _ in range(250)]
        for half in halves:
            half.sendall(HALF)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{receiver.url}/v1/traces")))
        provider.get_tracer("a").start_span("beside").end()
        provider.shutdown()
        assert receiver.counts.spans == 1
        assert {all_of(half).partition(b"\r\n")[0] for half in halves} == {b"HTTP/1.1 408 Request Timeout"}
    assert Store(tmp_path / "traces.duckdb").sql("SELECT name FROM spans").rows() == [{"name": "beside"}]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        pytest.param(b"", b"", id="nothing"),
        pytest.param(b"G", b"HTTP/1.1 408", id="a byte"),
        pytest.param(HALF, b"HTTP/1.1 408", id="half a head"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET", b"HTTP/1.1 200", id="half of a second request"),
    ],
)
def test_a_connection_without_a_whole_head_is_closed(sent, told):
    """Also one that says nothing, and one whose first request was whole."""
    with a_server(head_seconds=0.5) as server, connected(server.url) as connection:
        connection.sendall(sent)
        assert all_of(connection)[: len(told)] == told


def test_a_head_that_drips_gets_no_more_time():
    """More bytes of the same head do not start its time anew."""
    with a_server(head_seconds=1.0) as server, connected(server.url) as connection:
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012  which of the bytes it is depends on the moment
            for byte in HALF * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        assert not connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_reads_is_cut_off():
    """A sender that was answered already and goes on sending holds its connection for twice the limit, no longer."""
    with a_server(body_seconds=0.5) as server, connected(server.url) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        assert all_of(connection).startswith(b"HTTP/1.1 200")


def test_a_pause_between_two_requests_is_no_half_of_one():
    """A connection that is kept waits longer than a head may take."""
    with a_server(head_seconds=0.5) as server, connected(server.url) as connection:
        for _ in range(3):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"served"):
                part = connection.recv(4096)
                assert part, f"the connection was closed after {answer!r}"
                answer += part
            time.sleep(1.0)


def test_a_slow_answer_is_no_slow_request():
    """The limits are the sender's: an application takes as long as it needs."""

    async def slowly(scope, receive, send):
        await asyncio.sleep(1.5)
        await PlainTextResponse("served")(scope, receive, send)

    with a_server(slowly, head_seconds=0.2, body_seconds=0.2) as server:
        assert httpx.post(server.url, content=b"x", timeout=60).text == "served"


FOREIGN = [
    ({"host": "evil.example"}, "names the host 'evil.example'"),
    ({"host": "evil.example:4318"}, "names the host 'evil.example:4318'"),
    ({"host": "127.0.0.1.evil.example"}, "names the host '127.0.0.1.evil.example'"),
    ({"host": "192.168.0.7"}, "names the host '192.168.0.7'"),
    ({"host": "[fe80::1]:80"}, "names the host '[fe80::1]:80'"),
    ({"origin": "https://evil.example"}, "comes from 'https://evil.example'"),
    ({"origin": "null"}, "comes from 'null'"),
    ({"origin": "http://localhost:3000"}, "comes from 'http://localhost:3000'"),
]
OWN = [
    {},
    {"host": "localhost"},
    {"host": "LOCALHOST:99"},
    {"host": "127.0.0.1"},
    {"host": "127.1.2.3:4318"},
    {"host": "[::1]"},
    {"host": "[::1]:4318"},
    {"sec-fetch-mode": "cors"},  # what Node's fetch says of itself
]


@pytest.fixture
def receiver(tmp_path) -> Iterator[Receiver]:
    """A receiver without a token."""
    with Receiver(tmp_path / "traces.duckdb", port=0) as started:
        yield started


@pytest.mark.parametrize(("headers", "told"), FOREIGN)
def test_a_receiver_takes_nothing_from_a_page(receiver, headers, told):
    """403 in OTLP's words, in the encoding of the request, whatever is asked for; nothing is written."""
    for path in ("/v1/traces", "/v1/logs", "/healthz", "/elsewhere"):
        answer = httpx.post(receiver.url + path, json={"resourceSpans": []}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, 7)
        assert told in answer.json()["message"]
    packed = httpx.post(
        f"{receiver.url}/v1/traces", content=b"", headers={"content-type": "application/x-protobuf", **headers}
    )
    assert told in Status.FromString(packed.content).message
    assert receiver.counts.spans == 0


@pytest.mark.parametrize("headers", OWN)
def test_a_receiver_is_known_by_every_name_of_this_machine(receiver, headers):
    """Localhost and the loopback addresses, with any port: a port may be led here through a tunnel."""
    assert httpx.post(f"{receiver.url}/v1/traces", json={}, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [headers for headers, _ in FOREIGN])
def test_who_has_the_token_may_use_any_name(tmp_path, headers):
    """Behind a proxy, or from a container that knows this machine by another name, the token is what lets in."""
    with Receiver(tmp_path / "traces.duckdb", port=0, token="secret") as receiver:
        path = f"{receiver.url}/v1/traces"
        shown = {**headers, "authorization": "Bearer secret"}
        assert httpx.post(path, json={}, headers=shown).status_code == 200
        assert httpx.post(path, json={}, headers=headers).status_code == 403
        assert httpx.post(path, json={}).status_code == 401


def test_where_others_may_reach_it_names_are_not_checked(tmp_path):
    """An address of all interfaces has names that nobody here knows; its token is asked for."""
    with Receiver(tmp_path / "traces.duckdb", host="0.0.0.0", port=0, token="secret") as receiver:
        url = receiver.url.replace("0.0.0.0", "127.0.0.1")
        answer = httpx.post(f"{url}/v1/traces", json={}, headers={"host": "traces.example"})
        assert answer.status_code == 401


@pytest.fixture
def endpoint() -> Iterator[ProxyEndpoint]:
    """A policy endpoint whose policy nobody serves."""
    upstream = Upstream("http://127.0.0.1:1/v1", "")
    with ProxyEndpoint(upstream, upstream_model="m", version="v", journal=None) as started:  # type: ignore[arg-type]
        yield started


@pytest.mark.parametrize(("headers", "told"), FOREIGN)
def test_an_endpoint_answers_no_page(endpoint, headers, told):
    """Without the key: 403 in the words that OpenAI's clients read."""
    for path in ("/v1/models", "/v1/chat/completions", "/healthz"):
        answer = httpx.get(str(httpx.URL(endpoint.policy.base_url).join(path)), headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (403, "invalid_request_error", "forbidden")
        assert told in error["message"]


@pytest.mark.parametrize("headers", [*OWN, *(headers for headers, _ in FOREIGN)])
def test_clients_of_an_endpoint_have_its_key(endpoint, headers):
    """OpenAI's clients are let in by any name, and from a page that was given the key."""
    policy = endpoint.policy
    with openai.OpenAI(base_url=policy.base_url, api_key=policy.api_key, default_headers=headers) as client:
        assert [model.id for model in client.models.list()] == ["policy"]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=policy.base_url, api_key=policy.api_key) as client:
            return [model.id async for model in client.models.list()]

    assert asyncio.run(ask()) == ["policy"]


def test_a_body_that_does_not_come_is_an_error_that_clients_read(endpoint, monkeypatch):
    """The endpoint waits for a body as long as one may take, and says so."""
    monkeypatch.setattr("tracetune.trainers.endpoint.door.BODY_SECONDS", 0.5)
    with connected(endpoint.policy.base_url) as slow:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint.policy.api_key}\r\n"
        slow.sendall(f"{head}Content-Length: 10\r\n\r\n{{".encode())
        answer = slow.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"
