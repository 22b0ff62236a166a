"""A server on loopback that answers as OpenAI does, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass
class ModelServer:
    """Its address, the texts that it says next, and the requests that it has had: (headers, body)."""

    url: str = ""
    says: list[str] = field(default_factory=list)
    requests: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)

    @property
    def call_ids(self) -> list[str | None]:
        return [headers.get("x-tracetune-call") for headers, _ in self.requests]

    @property
    def modules(self) -> list[str | None]:
        return [headers.get("x-tracetune-module") for headers, _ in self.requests]

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append((dict(request.headers), body))
        if body["model"] == "broken":
            return JSONResponse({"error": {"message": "no such luck", "type": "server_error"}}, 400)
        if body["model"] == "odd":
            return JSONResponse({"id": 3, "choices": 4})
        head = {"id": f"chatcmpl-{len(self.requests)}", "created": 0, "model": "tiny-2026"}
        if body.get("stream"):
            return StreamingResponse(self._chunks(head, body), media_type="text/event-stream")
        choices = [
            {"index": index, "message": self._message(body, index), "finish_reason": "stop"}
            for index in range(body.get("n") or 1)
        ]
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": USAGE})

    def _message(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        if body.get("tools") and body["messages"][-1]["role"] != "tool":
            function = {"name": "search", "arguments": '{"query": "ann"}'}
            return {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "t1", "type": "function", "function": function}],
            }
        return {"role": "assistant", "content": self.says.pop(0) if self.says else f"answer {index}"}

    def _chunks(self, head: dict[str, Any], body: dict[str, Any]) -> Iterator[str]:
        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return f"data: {json.dumps({**head, 'object': 'chat.completion.chunk', 'choices': choices, **more})}\n\n"

        def delta(content: dict[str, Any], finish_reason: str | None = None) -> str:
            return event([{"index": 0, "delta": content, "finish_reason": finish_reason}])

        if body.get("tools"):
            call = {"index": 0, "id": "t1", "type": "function", "function": {"name": "search", "arguments": '{"query"'}}
            yield delta({"role": "assistant", "tool_calls": [call]})
            yield delta({"tool_calls": [{"index": 0, "function": {"arguments": ': "ann"}'}}]})
            yield delta({}, "tool_calls")
        else:
            yield delta({"role": "assistant", "content": "an"})
            if body["model"] == "odd-stream":
                yield event([{"index": 0, "delta": {"tool_calls": 3}}])
            if body["model"] == "broken-stream":
                yield 'data: {"error": {"message": "lost the thread"}}\n\n'
                return
            yield delta({"content": "swer"})
            yield delta({}, "stop")
        if (body.get("stream_options") or {}).get("include_usage"):
            yield event([], usage=USAGE)
        yield "data: [DONE]\n\n"


@pytest.fixture(scope="session")
def running_server() -> Iterator[ModelServer]:
    """The server, for all tests of this folder."""
    models = ModelServer()
    app = Starlette(routes=[Route("/v1/chat/completions", models.answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    (socket,) = server.servers[0].sockets
    models.url = f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
    yield models
    server.should_exit = True
    thread.join()


@pytest.fixture
def model_server(running_server: ModelServer) -> ModelServer:
    """The server, with nothing asked of it yet."""
    running_server.requests.clear()
    running_server.says.clear()
    return running_server


@pytest.fixture
def client(model_server: ModelServer) -> Iterator[openai.OpenAI]:
    """A client of that server."""
    with openai.OpenAI(base_url=model_server.url, api_key="key", max_retries=0) as client:
        yield client


@pytest.fixture
def async_client(model_server: ModelServer) -> openai.AsyncOpenAI:
    """An async client of that server."""
    return openai.AsyncOpenAI(base_url=model_server.url, api_key="key", max_retries=0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a store would stand."""
    return tmp_path / "traces.duckdb"


@pytest.fixture
def spool(store: Path) -> Path:
    """Its spool."""
    return store.with_name(f"{store.name}.spool")
