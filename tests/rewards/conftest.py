"""A judge on loopback that answers in OpenAI's shape, fails, limits, hangs and talks nonsense, as it is told."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


class JudgeServer:
    """Gives the answers of a list, one after the other, and the last of them from then on.

    An answer is a text, a status with headers, a function of the request, or a number of
    seconds to hang.

    Attributes:
        answers: what it gives.
        requests: the bodies it was sent.
        headers: of each request.
        times: when each request came, in seconds.
        most_at_once: how many requests were under way at once, at most.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, headers, body = server._respond(request, {k.lower(): v for k, v in self.headers.items()})
                try:
                    self.send_response(status)
                    for name, value in {**headers, "content-length": str(len(body))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except BrokenPipeError:
                    pass  # a client that was kept waiting too long

            def log_message(self, *values: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def settings(self) -> dict[str, Any]:
        """What leads a judge here."""
        return {"model": "openai/judge", "api_base": self.url, "api_key": "secret-key"}

    def _respond(self, request: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        with self._lock:
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            answer = self.answers[min(len(self.requests), len(self.answers) - 1)]
            self.requests.append(request)
            self.headers.append(headers)
            self.times.append(time.monotonic())
        try:
            if callable(answer):
                answer = answer(request)
            if isinstance(answer, tuple):
                status, more = answer
                return status, {"content-type": "application/json", **more}, b'{"error": {"message": "on purpose"}}'
            if isinstance(answer, bytes):
                return 200, {"content-type": "text/html"}, answer
            return 200, {"content-type": "application/json"}, json.dumps(_completion(request["model"], answer)).encode()
        finally:
            with self._lock:
                self._under_way -= 1


def _completion(model: str, text: str | None) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {
        "id": "chatcmpl-judged",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35},
    }


@pytest.fixture
def server() -> Any:
    """A judge's server, told what to answer by its `answers`."""
    server = JudgeServer()
    yield server
    server.stop()
