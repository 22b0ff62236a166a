"""The HTTP side of the endpoint: who may ask, what for, and the way of a request through it."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tracetune.trainers.endpoint.forwarding import Forwarder
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.prompts import Prompts
from tracetune.trainers.endpoint.replies import ChatShape, Heading, Json, Shape, TextShape
from tracetune.trainers.endpoint.requests import Body, read_chat, read_completion
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.types import Sampling

MAX_BODY_BYTES = 8 * 1024 * 1024
# What OpenAI's plain completions are cut at where the client does not say.
DEFAULT_PLAIN_TOKENS = 16
CALL_HEADER = "x-tracetune-call"
MODULE_HEADER = "x-tracetune-module"


@dataclass(frozen=True, slots=True)
class Service:
    """What the HTTP side needs of the rest.

    Attributes:
        name: the policy's model name.
        api_key: what clients must send.
        aliases: other names that mean the policy.
        prompts: tokenizes.
        submit: puts rows in the queue.
        sampling: gives what overrides the clients' wishes just now.
        forwarder: takes requests for other models, where there is somewhere to send them.
    """

    name: str
    api_key: str
    aliases: frozenset[str]
    prompts: Prompts
    submit: Callable[[list[Row]], None]
    sampling: Callable[[], Sampling | None]
    forwarder: Forwarder | None


def application(service: Service) -> Starlette:
    """The web application."""
    api = _Api(service)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", api.chat, methods=["POST"]),
            Route("/v1/completions", api.complete, methods=["POST"]),
            Route("/v1/models", api.models, methods=["GET"]),
            Route("/healthz", api.health, methods=["GET"]),
            Route("/v1/{path:path}", api.elsewhere, methods=["POST"]),
        ],
        exception_handlers={Problem: _show_problem, HTTPException: _show_http_exception},
    )


class _Api:
    """What happens at each address."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def chat(self, request: Request) -> Response:
        content, values = await self._read(request)
        if not self._is_policy(values):
            return await self._forward(request, content, values)
        body = read_chat(values)
        prompt_ids = self._service.prompts.of_chat(body.messages)
        room = self._service.prompts.room_after(prompt_ids, "messages")
        sampling = self._sampling(body, min(body.max_completion_tokens or body.max_tokens or room, room), room)
        shape = ChatShape(self._service.prompts.token_text, bool(body.logprobs))
        return await self._answer(request, body, shape, [(prompt_ids, sampling)], body.alternatives, "chatcmpl")

    async def complete(self, request: Request) -> Response:
        content, values = await self._read(request)
        if not self._is_policy(values):
            return await self._forward(request, content, values)
        body = read_completion(values)
        prompts = []
        for prompt in body.prompts:
            prompt_ids = self._service.prompts.of_text(prompt)
            room = self._service.prompts.room_after(prompt_ids, "prompt")
            prompts.append((prompt_ids, self._sampling(body, min(body.max_tokens or DEFAULT_PLAIN_TOKENS, room), room)))
        shape = TextShape(self._service.prompts.token_text, body.logprobs is not None)
        return await self._answer(request, body, shape, prompts, body.logprobs or 0, "cmpl")

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        names = [self._service.name, *sorted(self._service.aliases)]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "tracetune"} for name in names]
        return _json({"object": "list", "data": models})

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def elsewhere(self, request: Request) -> Response:
        content, values = await self._read(request)
        if self._is_policy(values):
            message = (
                f"the policy endpoint does not serve {request.url.path}; call /v1/chat/completions or /v1/completions"
            )
            raise Problem(404, message, code="unknown_url")
        return await self._forward(request, content, values)

    def _check_key(self, request: Request) -> None:
        expected = f"Bearer {self._service.api_key}"
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
            raise Problem(401, "this is not the policy endpoint's key; use tt.policy().api_key", code="invalid_api_key")

    async def _read(self, request: Request) -> tuple[bytes, Json]:
        """The body, as bytes and as an object."""
        self._check_key(request)
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_BODY_BYTES:
                raise Problem(413, f"the request is larger than {MAX_BODY_BYTES} bytes; shorten it", code="too_large")
        try:
            values = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise Problem(400, f"the request is not JSON: {error}", code="invalid_json") from None
        if not isinstance(values, dict):
            raise Problem(400, "the request is not a JSON object", code="invalid_json")
        if not isinstance(values.get("model"), str):
            raise Problem(400, "the request names no 'model'", "model", "missing_required_parameter")
        return bytes(content), values

    def _is_policy(self, values: Json) -> bool:
        return values["model"] == self._service.name or values["model"] in self._service.aliases

    async def _forward(self, request: Request, content: bytes, values: Json) -> Response:
        if self._service.forwarder is None:
            name = values["model"]
            message = (
                f"there is no model {name!r} here; ask for {self._service.name!r}, "
                f"or map the name with models={{{name!r}: {self._service.name!r}}}"
            )
            raise Problem(404, message, "model", "model_not_found")
        return await self._service.forwarder.pass_on(request, content)

    def _sampling(self, body: Body, max_tokens: int, room: int) -> Sampling:
        """What the client asks for, defaults filled in, under what is in force just now."""
        asked = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k if body.top_k is not None and body.top_k > 0 else None,
            max_tokens=max_tokens,
            seed=body.seed,
            stop=body.stop_strings,
        )
        override = self._service.sampling()
        if override is None:
            return asked
        # The program's top_k would leave the policy's distribution, and its seed would make
        # every rollout of a group the same, so neither survives an override.
        return Sampling(
            temperature=asked.temperature if override.temperature is None else override.temperature,
            top_p=asked.top_p if override.top_p is None else override.top_p,
            top_k=override.top_k,
            max_tokens=asked.max_tokens if override.max_tokens is None else min(override.max_tokens, room),
            seed=override.seed,
            stop=override.stop or asked.stop,
        )

    async def _answer(
        self,
        request: Request,
        body: Body,
        shape: Shape,
        prompts: list[tuple[tuple[int, ...], Sampling]],
        top_logprobs: int,
        prefix: str,
    ) -> Response:
        """Have every choice of every prompt decoded."""
        heading = Heading(f"{prefix}-{secrets.token_hex(12)}", body.model, sum(len(ids) for ids, _ in prompts))
        inbox: asyncio.Queue[Piece] = asyncio.Queue()
        choices = body.n or 1
        rows = [
            Row(
                response_id=heading.id,
                choice=index * choices + choice,
                model=body.model,
                prompt_ids=prompt_ids,
                sampling=_of_choice(sampling, choice),
                receive=inbox.put_nowait,
                streamed=bool(body.stream),
                top_logprobs=top_logprobs,
                call_id=request.headers.get(CALL_HEADER),
                module=request.headers.get(MODULE_HEADER),
            )
            for index, (prompt_ids, sampling) in enumerate(prompts)
            for choice in range(choices)
        ]
        self._service.submit(rows)
        pieces = _pieces(request, rows, inbox)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = _events(shape, heading, rows, pieces, with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        last = {}
        async for piece in pieces:
            if piece.problem is not None:
                raise piece.problem
            last[piece.row.choice] = piece
        ended = [last[row.choice] for row in rows]
        reasons = [piece.finish_reason or "" for piece in ended]
        return _json(shape.response(heading, rows, [piece.text for piece in ended], reasons))


def _of_choice(sampling: Sampling, choice: int) -> Sampling:
    """A seed gives the first choice; the others follow from it, and are not the same again."""
    if sampling.seed is None or choice == 0:
        return sampling
    return sampling.model_copy(update={"seed": sampling.seed + choice})


async def _pieces(request: Request, rows: list[Row], inbox: asyncio.Queue[Piece]) -> AsyncIterator[Piece]:
    """The rows' pieces as they come, until each has had its last; a client that leaves cancels them."""
    watch = asyncio.ensure_future(_cancel_when_gone(request, rows))
    unfinished = len(rows)
    try:
        while unfinished:
            piece = await inbox.get()
            unfinished -= piece.finish_reason is not None or piece.problem is not None
            yield piece
    finally:
        watch.cancel()
        for row in rows:
            row.cancelled = True


async def _cancel_when_gone(request: Request, rows: list[Row]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    for row in rows:
        row.cancelled = True


async def _events(
    shape: Shape, heading: Heading, rows: list[Row], pieces: AsyncIterator[Piece], with_usage: bool
) -> AsyncIterator[bytes]:
    """A stream's server-sent events."""
    sent = dict.fromkeys(rows, 0)
    opened = False
    async for piece in pieces:
        if piece.problem is not None:
            yield _event(piece.problem.body)
            return
        if not opened:
            opened = True
            for chunk in shape.opening(heading, rows):
                yield _event(chunk)
        yield _event(shape.chunk(heading, piece, sent[piece.row]))
        sent[piece.row] = piece.tokens
    if with_usage:
        yield _event(shape.usage_chunk(heading, rows))
    yield b"data: [DONE]\n\n"


def _event(values: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(values) + b"\n\n"


def _json(values: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(values), status_code=status, media_type="application/json")


async def _show_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _json(error.body, error.status)


async def _show_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"the policy endpoint does not serve {request.method} {request.url.path}"
    return _json(Problem(error.status_code, message, code="unknown_url").body, error.status_code)
