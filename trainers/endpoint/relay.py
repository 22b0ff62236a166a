"""The way of the policy's requests to where it answers, and of the answers back.

A request goes on as it came, but for the model's name and for what is set over its
sampling. The answer comes back byte for byte, as it comes, errors included; where the
upstream says which tokens it sampled, they are taken out of it and written down.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import httpx
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tracetune.errors import TracetuneWarning
from tracetune.trainers.endpoint.door import CALL_HEADER, MODULE_HEADER, Door, event
from tracetune.trainers.endpoint.forwarding import Forwarder, passed_headers
from tracetune.trainers.endpoint.gate import Gate, Usage
from tracetune.trainers.endpoint.overrides import asked_of, in_force, with_sampling
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.recorded import Heading, RecordedRequest
from tracetune.types import Journal, Sampling, Upstream

Reader = Callable[[httpx.Response], AsyncGenerator[bytes]]


class Serving(NamedTuple):
    """What the policy is at the moment: its name at the upstream, and its version."""

    model: str
    version: str


class Relay:
    """Answers for a policy by asking whoever has it.

    Attributes:
        serving: what requests get that begin from now on.
        gate: every request passes it; closed while the policy changes.
        usage: which of the upstream's models are being asked.
        requests_received: how many requests for the policy have come.
        completions_served: how many choices have been answered to the end.
    """

    def __init__(
        self,
        upstream: Upstream,
        serving: Serving,
        sampling: Callable[[], Sampling | None],
        journal: Journal | None,
    ) -> None:
        """Prepare the way; nothing is connected before the first request.

        Args:
            upstream: who has the policy.
            serving: see the attribute.
            sampling: gives what goes over the clients' sampling just now.
            journal: gets the tokens of each choice; None where the upstream does not return them.
        """
        self.serving = serving
        self._address = upstream.base_url
        self._journal = journal
        self._has_warned = False
        self.gate = Gate()
        self.usage = Usage()
        self.requests_received = 0
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
        self.requests_received += 1
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
            body, read = self._prepared(request, values)
            with self.usage.of(body["model"]):
                await self._exchanged(request, body, read, parts)

    async def _exchanged(self, request: Request, body: Mapping[str, Any], read: Reader, parts: _Parts) -> None:
        encoding = None if self._journal is None else "identity"
        answer = await self._upstream.send(request, orjson.dumps(body), encoding=encoding)
        parts.of(answer)
        try:
            async with aclosing(read(answer)) as chunks:
                async for chunk in chunks:
                    await parts.pass_on(chunk)
        except Problem as problem:
            await parts.cut_short(problem)
        except httpx.HTTPError as error:
            reason = f"the answer of {self._address} broke off: {type(error).__name__}: {error}"
            await parts.cut_short(Problem(502, reason, code="upstream"))
        else:
            if answer.is_success:
                self.completions_served += _choices(body)
            await parts.end()
        finally:
            await answer.aclose()

    def _prepared(self, request: Request, values: Mapping[str, Any]) -> tuple[Mapping[str, Any], Reader]:
        """What is sent on in place of what was asked, and how its answer is read."""
        override, (model, version) = self._sampling(), self.serving
        if self._journal is not None:
            call_id, module = request.headers.get(CALL_HEADER), request.headers.get(MODULE_HEADER)
            heading = Heading(values["model"], version, call_id, module)
            recorded = RecordedRequest(
                values, model, override, heading, journal=self._journal, on_unknown=self._warn_of_unknown
            )
            return recorded.body, recorded.answer
        body = {**values, "model": model}
        return (body if override is None else with_sampling(body, in_force(asked_of(values), override))), _as_it_is

    def _warn_of_unknown(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            message = (
                f"{self._address} returns no token ids, so its completions are known by their text alone; "
                "serve the policy with vLLM 0.10.2 or newer, or leave out records_tokens"
            )
            warnings.warn(message, TracetuneWarning, stacklevel=2)


async def _as_it_is(answer: httpx.Response) -> AsyncGenerator[bytes]:
    async for chunk in answer.aiter_raw():
        yield chunk


class _Relayed(Response):
    """An answer that is fetched while it is given."""

    def __init__(self, relay: Relay, values: Mapping[str, Any]) -> None:
        super().__init__()
        self._relay, self._values = relay, values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._relay.answer(Request(scope, receive), self._values, send)


class _Parts:
    """The parts of an answer as the client gets them; it begins with the first of them."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._answer: httpx.Response | None = None
        self._begun = self._is_stream = False
        self._takes_event = False

    def of(self, answer: httpx.Response) -> None:
        """Say whose status and headers they go under."""
        self._answer = answer
        self._is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")

    async def pass_on(self, chunk: bytes) -> None:
        await self._begin()
        self._takes_event = self._is_stream and chunk.endswith(b"\n\n")
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        await self._begin()
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

    async def _begin(self) -> None:
        if self._begun or self._answer is None:
            return
        self._begun = True
        status, headers = self._answer.status_code, passed_headers(self._answer)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _choices(values: Mapping[str, Any]) -> int:
    prompt = values.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    choices = values.get("n")
    return prompts * (choices if isinstance(choices, int) else 1)


def _stopped() -> Problem:
    return Problem(503, "the policy endpoint has been stopped; call it while it runs", code="stopped")
