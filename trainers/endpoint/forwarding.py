"""Requests for models that are not the policy: passed on to where they were meant to go."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tracetune.trainers.endpoint.problems import Problem
from tracetune.types import Upstream

# What belongs to one connection, or to this endpoint, and not to the one behind it.
_OWN = frozenset(
    {
        "authorization",
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Forwarder:
    """Passes requests on to an upstream, and its answers back byte for byte."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        # An answer may take as long as a language model takes.
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(600.0, connect=10.0))

    async def pass_on(self, request: Request, body: bytes) -> Response:
        """The upstream's answer to a request.

        Raises:
            Problem: if the upstream can't be reached.
        """
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _OWN and not name.startswith("x-tracetune-")
        ]
        path = request.url.path.removeprefix("/v1")
        passed = self._client.build_request(
            request.method,
            self._upstream.base_url.rstrip("/") + path,
            params=request.query_params,
            headers=[*headers, ("authorization", f"Bearer {self._upstream.api_key}")],
            content=body,
        )
        try:
            answer = await self._client.send(passed, stream=True)
        except httpx.HTTPError as error:
            raise Problem(
                502, f"{self._upstream.base_url} could not be reached: {type(error).__name__}: {error}", code="upstream"
            ) from None
        response = StreamingResponse(
            _raw(answer), status_code=answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [
            (name.lower(), value) for name, value in answer.headers.raw if name.lower().decode() not in _OWN
        ]
        return response

    async def close(self) -> None:
        """Close the connections to the upstream."""
        await self._client.aclose()


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for chunk in answer.aiter_raw():
        yield chunk
