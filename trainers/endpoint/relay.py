"""The way of the policy's requests to where it answers, and of the answers back.

A request goes on as it came, but for the model's name and for what is set over its
sampling. The answer comes back byte for byte, as it comes, errors included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tracetune.trainers.endpoint.door import Door, event
from tracetune.trainers.endpoint.forwarding import Forwarder, passed_headers
from tracetune.trainers.endpoint.gate import Gate
from tracetune.trainers.endpoint.overrides import asked_of, in_force, with_sampling
from tracetune.trainers.endpoint.problems import Problem
from tracetune.types import Sampling, Upstream


class Serving(NamedTuple):
    """What the policy is at the moment: its name at the upstream, and its version."""

    model: str
    version: str


class Relay:
    """Answers for a policy by asking whoever has it.

    Attributes:
        serving: what requests get that begin from now on.
        gate: every request passes it; closed while the policy changes.
        completions_served: how many choices have been answered to the end.
    """

    def __init__(self, upstream: Upstream, serving: Serving, sampling: Callable[[], Sampling | None]) -> None:
        self.serving = serving
        self.gate = Gate()
        self.completions_served = 0
        self._upstream = Forwarder(upstream)
        self._sampling = sampling
        self._under_way: set[asyncio.Task[None]] = set()
        self._stopped = False

    def application(self, door: Door) -> Starlette:
        """The web application, behind a door."""

        async def answer(request: Request) -> Response:
            content, values = await door.read(request)
            if not door.asks_policy(values):
                return await door.forward(request, content, values)
            return _Relayed(self, values)

        return door.application(answer, answer)

    def stop(self) -> None:
        """Cut short what is under way, and refuse what comes; called in the server's loop."""
        self._stopped = True
        for task in self._under_way:
            task.cancel()

    async def close(self) -> None:
        """Close the connections to the upstream."""
        await self._upstream.close()

    async def answer(self, request: Request, values: Mapping[str, Any], send: Send) -> None:
        """Send a request on and its answer back; a client that leaves, or a stop, cuts it short.

        Raises:
            Problem: if there can be no answer.
        """
        parts = _Parts(send)
        task = asyncio.ensure_future(self._passed_on(request, values, parts))
        gone = asyncio.ensure_future(_gone(request))
        self._under_way.add(task)
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._under_way.discard(task)
            gone.cancel()
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        elif self._stopped:
            await parts.cut_short(_stopped())

    async def _passed_on(self, request: Request, values: Mapping[str, Any], parts: _Parts) -> None:
        async with self.gate.passed():
            if self._stopped:
                raise _stopped()
            answer = await self._upstream.send(request, orjson.dumps(self._body(values)))
            try:
                await parts.begin(answer)
                async for chunk in answer.aiter_raw():
                    await parts.pass_on(chunk)
            except httpx.HTTPError as error:
                await parts.cut_short(Problem(502, f"the answer broke off: {type(error).__name__}: {error}"))
                return
            finally:
                await answer.aclose()
            if answer.is_success:
                self.completions_served += _choices(values)
            await parts.end()

    def _body(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is sent on in place of what was asked."""
        override = self._sampling()
        body = {**values, "model": self.serving.model}
        return body if override is None else with_sampling(body, in_force(asked_of(values), override))


class _Relayed(Response):
    """An answer that is fetched while it is given."""

    def __init__(self, relay: Relay, values: Mapping[str, Any]) -> None:
        super().__init__()
        self._relay, self._values = relay, values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._relay.answer(Request(scope, receive), self._values, send)


class _Parts:
    """The parts of an answer as the client gets them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._is_stream = False
        self._takes_event = False

    async def begin(self, answer: httpx.Response) -> None:
        self._begun = True
        self._is_stream = self._takes_event = answer.headers.get("content-type", "").startswith("text/event-stream")
        await self._send(
            {"type": "http.response.start", "status": answer.status_code, "headers": passed_headers(answer)}
        )

    async def pass_on(self, chunk: bytes) -> None:
        self._takes_event = self._is_stream and chunk.endswith(b"\n\n")
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def cut_short(self, problem: Problem) -> None:
        """Say in place of the rest why there is none.

        Raises:
            Problem: if nothing was sent so far.
        """
        if not self._begun:
            raise problem
        if self._takes_event:
            await self.pass_on(event(problem.body))
            await self.end()
        # Otherwise the connection is closed before the announced end, and the client tells by that.


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _choices(values: Mapping[str, Any]) -> int:
    prompt = values.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return prompts * (values.get("n") or 1)


def _stopped() -> Problem:
    return Problem(503, "the policy endpoint has been stopped; call it while it runs", code="stopped")
