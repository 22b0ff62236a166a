"""Requests for models that are not the policy: passed on to where they were meant to go."""

from __future__ import annotations

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
        # An answer may take as long as a language model takes, how many are asked at once is the
        # program's to say, and servers close connections that were idle for 5 seconds.
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(600.0, connect=10.0), limits=httpx.Limits(keepalive_expiry=2.0)
        )

    async def pass_on(self, request: Request, body: bytes) -> Response:
        """The upstream's answer to a request.

        Raises:
            Problem: if the upstream can't be reached.
        """
        answer = await self.send(request, body)
        response = StreamingResponse(
            answer.aiter_raw(), status_code=answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = passed_headers(answer)
        return response

    async def send(self, request: Request, body: bytes, *, encoding: str | None = None) -> httpx.Response:
        """The upstream's answer as it begins, its content still to come; whoever asked closes it.

        Args:
            request: the path, the query and the headers are taken from it.
            body: sent in place of the request's own.
            encoding: the content encodings that the answer may come in, in place of the client's.

        Raises:
            Problem: if the upstream can't be reached.
        """
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in _OWN
            and not name.startswith("x-tracetune-")
            and (encoding is None or name != "accept-encoding")
        ]
        if encoding is not None:
            headers.append(("accept-encoding", encoding))
        path = request.url.path.removeprefix("/v1")
        passed = self._client.build_request(
            request.method,
            self._upstream.base_url.rstrip("/") + path,
            params=request.query_params,
            headers=[*headers, ("authorization", f"Bearer {self._upstream.api_key}")],
            content=body,
        )
        try:
            return await self._client.send(passed, stream=True)
        except httpx.HTTPError as error:
            raise Problem(
                502, f"{self._upstream.base_url} could not be reached: {type(error).__name__}: {error}", code="upstream"
            ) from None

    async def close(self) -> None:
        """Close the connections to the upstream."""
        await self._client.aclose()


def passed_headers(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that are the client's as well."""
    return [(name.lower(), value) for name, value in answer.headers.raw if name.lower().decode() not in _OWN]
