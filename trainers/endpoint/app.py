"""The HTTP side of a facade: the way of a request for the policy through it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tracetune.trainers.endpoint.door import CALL_HEADER, MODULE_HEADER, Door, event, json_response
from tracetune.trainers.endpoint.grammars import Constraint, Grammars
from tracetune.trainers.endpoint.overrides import in_force, with_defaults
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.prompts import Prompts
from tracetune.trainers.endpoint.replies import ChatShape, Heading, Shape, TextShape
from tracetune.trainers.endpoint.requests import Body, ChatBody, read_chat, read_completion
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.trainers.endpoint.tool_calls import ToolReader
from tracetune.types import Sampling

# What OpenAI's plain completions are cut at where the client does not say.
DEFAULT_PLAIN_TOKENS = 16
# Requests above that are read one at a time, so that they leave threads to the others.
LARGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Service:
    """What the HTTP side needs of the rest.

    Attributes:
        door: lets clients in.
        prompts: tokenizes.
        submit: puts rows in the queue.
        grammars: makes answers have a form, where whoever decodes can.
        sampling: gives what overrides the clients' wishes just now.
    """

    door: Door
    prompts: Prompts
    submit: Callable[[list[Row]], None]
    sampling: Callable[[], Sampling | None]
    grammars: Grammars | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for the policy, read.

    Attributes:
        body: its parameters.
        shape: of its answer.
        prompts: the tokens of each prompt, and how its choices are sampled.
        top_logprobs: how many alternatives of each token are shown.
        constraints: what each choice of a prompt may be.
    """

    body: Body
    shape: Shape
    prompts: list[tuple[tuple[int, ...], Sampling]]
    top_logprobs: int
    constraints: list[Constraint | None]


Read = Callable[[Mapping[str, Any]], Asked]


def application(service: Service) -> Starlette:
    """The web application."""
    api = _Api(service)
    return service.door.application(api.chat, api.complete)


class _Api:
    """What happens at each address."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._large = asyncio.Lock()

    async def chat(self, request: Request) -> Response:
        content, values = await self._service.door.read(request)
        if not self._service.door.asks_policy(values):
            return await self._service.door.forward(request, content, values)
        asked = await self._in_thread(self._read_chat, values, len(content))
        return await self._answer(request, asked, "chatcmpl")

    async def complete(self, request: Request) -> Response:
        content, values = await self._service.door.read(request)
        if not self._service.door.asks_policy(values):
            return await self._service.door.forward(request, content, values)
        asked = await self._in_thread(self._read_completion, values, len(content))
        return await self._answer(request, asked, "cmpl")

    async def _in_thread(self, read: Read, values: Mapping[str, Any], size: int) -> Asked:
        """What a request asks, read while others are answered; large requests wait for each other alone."""
        try:
            if size <= LARGE_BYTES:
                return await asyncio.to_thread(read, values)
            async with self._large:
                return await asyncio.to_thread(read, values)
        except RecursionError:
            raise Problem(400, "the request is nested too deeply; flatten it", code="invalid_json") from None

    def _read_chat(self, values: Mapping[str, Any]) -> Asked:
        body = read_chat(values)
        prompt_ids = self._service.prompts.of_chat(body.messages, body.offered)
        room = self._service.prompts.room_after(prompt_ids, "messages")
        sampling = self._sampling(body, min(body.max_completion_tokens or body.max_tokens or room, room), room)
        grammar = self._grammar(body)
        sampling = sampling.model_copy(update={"constrained": grammar is not None})
        shape = ChatShape(self._service.prompts.token_text, bool(body.logprobs), self._tools(body))
        constraints = [self._constraint(grammar) for _ in range(body.n or 1)]
        return Asked(body, shape, [(prompt_ids, sampling)], body.alternatives, constraints)

    def _read_completion(self, values: Mapping[str, Any]) -> Asked:
        self._service.prompts.check_size(values)
        body = read_completion(values)
        prompts = []
        for prompt in body.prompts:
            prompt_ids = self._service.prompts.of_text(prompt)
            room = self._service.prompts.room_after(prompt_ids, "prompt")
            prompts.append((prompt_ids, self._sampling(body, min(body.max_tokens or DEFAULT_PLAIN_TOKENS, room), room)))
        shape = TextShape(self._service.prompts.token_text, body.logprobs is not None)
        return Asked(body, shape, prompts, body.logprobs or 0, [None] * (body.n or 1))

    def _tools(self, body: ChatBody) -> ToolReader | None:
        """Reads the calls of the tools that were offered, where some were."""
        if not body.offered:
            return None
        names = {tool.function.name for tool in body.offered}
        form = self._service.prompts.tool_format(body.offered)
        return ToolReader(form, names, single=body.parallel_tool_calls is False)

    def _grammar(self, body: ChatBody) -> str | None:
        """What the answer must be, where it may not be any text; may take a second the first time."""
        schema = body.answer_schema
        if schema is None:
            return None
        if self._service.grammars is None:
            message = "the policy endpoint does not support 'response_format' here; leave it out"
            raise Problem(400, message, "response_format", "unsupported_parameter")
        return self._service.grammars.of_schema(schema)

    def _sampling(self, body: Body, max_tokens: int, room: int) -> Sampling:
        """What the client asks for, defaults filled in, under what is in force just now."""
        asked = Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k if body.top_k is not None and body.top_k > 0 else None,
            max_tokens=max_tokens,
            seed=body.seed,
            stop=body.stop_strings,
        )
        sampling = in_force(with_defaults(asked), self._service.sampling())
        return sampling.model_copy(update={"max_tokens": min(sampling.max_tokens or room, room)})

    def _constraint(self, grammar: str | None) -> Constraint | None:
        if grammar is None or self._service.grammars is None:
            return None
        return self._service.grammars.constraint(grammar)

    async def _answer(self, request: Request, asked: Asked, prefix: str) -> Response:
        """Have every choice of every prompt decoded."""
        body, shape, prompts = asked.body, asked.shape, asked.prompts
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
                top_logprobs=asked.top_logprobs,
                call_id=request.headers.get(CALL_HEADER),
                module=request.headers.get(MODULE_HEADER),
                constraint=asked.constraints[choice],
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
        return json_response(shape.response(heading, rows, [piece.text for piece in ended], reasons))


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
            yield event(piece.problem.body)
            return
        if not opened:
            opened = True
            for chunk in shape.opening(heading, rows):
                yield event(chunk)
        yield event(shape.chunk(heading, piece, sent[piece.row]))
        sent[piece.row] = piece.tokens
    if with_usage:
        yield event(shape.usage_chunk(heading, rows))
    yield b"data: [DONE]\n\n"
