"""The demo's program, spoken to through a real server by the real `openai` client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import tracetune as tt
from tracetune.demo.program import MAX_HOPS, answer_prompt, find_person, hop_prompt

FACTS = "bob boss cat\nann friend bob"
QUESTION = "ann friend boss"


class ScriptedServer(ThreadingHTTPServer):
    """Answers each chat completion with the next of its lines, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lines: Iterator[str] = iter(())
        self.requests: list[dict[str, Any]] = []
        self.connections: set[Any] = set()

    def says(self, *lines: str) -> None:
        """Set the lines to come."""
        self.lines = iter(lines)

    @property
    def prompts(self) -> list[str]:
        """What the program asked, in order."""
        return [request["messages"][-1]["content"] for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.connections.add(self.client_address)
        message = {"role": "assistant", "content": next(self.server.lines)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        reply = {"id": "r", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A scripted server that is the policy in force."""
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        policy = tt.Policy(f"http://127.0.0.1:{server.server_port}/v1", "key", "policy", "test@0")
        with tt.rollout(policy=policy):
            yield server
        server.shutdown()


def test_the_program_follows_the_model_until_it_is_done(server):
    """Two hops and an answer: each prompt holds what was found before it, on one connection."""
    server.says("bob more", "cat done", "the answer is cat")
    assert find_person(FACTS, QUESTION) == "cat"
    assert server.prompts == [
        "next name , more or done\nbob boss cat\nann friend bob\nann friend ? boss ?",
        "next name , more or done\nbob boss cat\nann friend bob\nann friend bob boss ?",
        "say the answer\nquestion ann friend boss\ntrail ann bob cat",
    ]
    assert len(server.connections) == 1


def test_the_model_may_stop_early(server):
    """`done` after the first hop leads straight to the answer."""
    server.says("bob done", "the answer is bob")
    assert find_person(FACTS, QUESTION) == "bob"


def test_a_model_that_never_stops_is_stopped(server):
    """After the last hop that is allowed, the answer is asked for."""
    server.says(*["cat more"] * MAX_HOPS, "the answer is cat")
    assert find_person(FACTS, QUESTION) == "cat"
    assert len(server.requests) == MAX_HOPS + 1


@pytest.mark.parametrize(
    "lines",
    [("bob",), ("bob maybe",), ("",), ("bob more done",), ("bob done", "bob"), ("bob done", "the answer is")],
)
def test_a_completion_in_the_wrong_form_is_a_format_error(server, lines):
    """Neither module guesses at what a malformed completion meant; the message quotes it."""
    server.says(*lines)
    with pytest.raises(tt.FormatError) as caught:
        find_person(FACTS, QUESTION)
    assert repr(lines[-1]) in str(caught.value)
    assert len(server.requests) == len(lines)


def test_a_trail_past_the_end_of_the_question_asks_the_same_again():
    """The path shows no more names than the question has places; the answer sees the whole trail."""
    assert hop_prompt("", QUESTION, ["ann", "bob", "cat"]) == hop_prompt("", QUESTION, ["ann", "bob", "cat", "dan"])
    assert answer_prompt(QUESTION, ["ann", "bob", "cat", "dan"]).endswith("trail ann bob cat dan")
