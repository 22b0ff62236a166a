"""Requests for models that are not the policy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest

from tracetune.trainers.endpoint import Upstream

EVENTS = [b'data: {"id": "1"', b', "choices": []}\n\n', b"data: [DONE]\n\n"]


class Judge(BaseHTTPRequestHandler):
    """An outside model: remembers what it was asked, and streams odd bytes."""

    asked: list[tuple[str, dict[str, str], bytes]]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        if b"teapot" in body:
            self.send_response(418)
            self.send_header("content-length", "5")
            self.send_header("retry-after", "7")
            self.end_headers()
            self.wfile.write(b"short")
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("x-request-id", "r-1")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in EVENTS:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def judge() -> Iterator[ThreadingHTTPServer]:
    """An outside model at an address of its own."""
    handler = type("Judge", (Judge,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def upstream(judge) -> Upstream:
    """Where the judge answers."""
    return Upstream(f"http://127.0.0.1:{judge.server_port}/deep/v1/", api_key="judge-key")


def test_other_models_are_forwarded_byte_for_byte(serve, judge, journal):
    """Body, answer and headers pass as they are; the key is the upstream's, our own headers stay here."""
    policy = serve(forward=upstream(judge)).policy
    body = b'{"model":  "judge", "messages": [], "odd": 1}'
    headers = {"authorization": f"Bearer {policy.api_key}", "x-tracetune-call": "c1", "x-custom": "kept"}
    answer = httpx.post(policy.base_url + "/chat/completions?a=b", content=body, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"".join(EVENTS))
    assert (answer.headers["content-type"], answer.headers["x-request-id"]) == ("text/event-stream", "r-1")
    ((path, asked, passed),) = judge.RequestHandlerClass.asked
    assert (path, passed) == ("/deep/v1/chat/completions?a=b", body)
    assert (asked["authorization"], asked["x-custom"]) == ("Bearer judge-key", "kept")
    assert "x-tracetune-call" not in asked
    assert journal.completions == []


def test_an_upstreams_error_is_passed_on(serve, judge):
    """Status, headers and body of an error are the upstream's own."""
    policy = serve(forward=upstream(judge)).policy
    headers = {"authorization": f"Bearer {policy.api_key}"}
    answer = httpx.post(policy.base_url + "/embeddings", json={"model": "teapot"}, headers=headers)
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (418, b"short", "7")


def test_the_policy_is_not_forwarded(serve, judge, connect):
    """With an upstream, the policy and its mapped names are still answered here."""
    client = connect(serve(forward=upstream(judge), models={"gpt-4o-mini": "policy"}))
    for name in ("policy", "gpt-4o-mini"):
        client.chat.completions.create(model=name, messages=[{"role": "user", "content": "w1"}], max_tokens=2)
    assert judge.RequestHandlerClass.asked == []


def test_an_upstream_that_is_not_there_is_named(serve, connect):
    """A connection that fails gets 502 and says which address it was."""
    client = connect(serve(forward=Upstream("http://127.0.0.1:9", api_key="k")))
    with pytest.raises(openai.InternalServerError, match=r"http://127\.0\.0\.1:9 could not be reached") as caught:
        client.chat.completions.create(model="judge", messages=[])
    assert caught.value.status_code == 502


def test_an_upstreams_key_is_not_shown():
    """Printing an upstream shows its address only."""
    assert repr(Upstream("https://judge/v1", api_key="secret")) == "Upstream(base_url='https://judge/v1')"
