"""The HTTP side of the receiver: who may send, what, and the way of a request to the spool.

Nothing is acknowledged that was not written. What cannot be written is answered with 503,
on which exporters send it again; what comes twice is in the store once.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tracetune.adapters.otlp.answers import JSON, PROTOBUF, Refusal, failure, success
from tracetune.adapters.otlp.bodies import Buffer
from tracetune.adapters.otlp.documents import Reading, TooLarge, read_json_request, read_protobuf
from tracetune.adapters.otlp.json_encoding import Malformed
from tracetune.adapters.otlp.signals import LOGS, TRACES, Signal
from tracetune.http import RefuseForeign
from tracetune.tracer import Spool

RETRY_SECONDS = 5
_READERS = {PROTOBUF: read_protobuf, JSON: read_json_request}


@dataclass(frozen=True, slots=True)
class Service:
    """What the HTTP side needs of the rest.

    Attributes:
        spool: where what is received goes.
        token: what senders must show; None lets everybody in.
        workers: the threads that read requests, apart from the one that talks to senders.
        buffer: room for their bodies.
    """

    spool: Spool
    token: str | None
    workers: Executor
    buffer: Buffer


def application(service: Service, host: str) -> ASGIApp:
    """The web application, for an address to listen at."""
    api = _Api(service)
    routes = Starlette(
        routes=[
            Route(TRACES.path, api.of(TRACES), methods=["POST"]),
            Route(LOGS.path, api.of(LOGS), methods=["POST"]),
            Route("/v1/metrics", api.metrics, methods=["POST"]),
            Route("/healthz", _health, methods=["GET"]),
        ],
        exception_handlers={Refusal: api.refuse, HTTPException: api.refuse_address, ClientDisconnect: _forget},
    )
    return RefuseForeign(routes, host=host, knows_secret=api.knows_token, refuse=_refusal)


class _Api:
    """What happens at each address."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def of(self, signal: Signal) -> Callable[[Request], Awaitable[Response]]:
        """What takes the requests of one signal."""

        async def take(request: Request) -> Response:
            return await self._take(request, signal)

        return take

    async def metrics(self, request: Request) -> Response:
        self._check_token(request)
        raise Refusal(
            404, "metrics are not kept here, spans and log records are; tell the exporter OTEL_METRICS_EXPORTER=none"
        )

    async def refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        if error.status != 408:
            await self._service.buffer.drop(request)
        return failure(error, _encoding(request))

    async def refuse_address(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.scope['path']} is not served here; POST to {TRACES.path} or {LOGS.path}"
        return await self.refuse(request, Refusal(error.status_code, message, error.headers or {}))

    async def _take(self, request: Request, signal: Signal) -> Response:
        self._check_token(request)
        encoding = _encoding(request)
        if encoding not in _READERS:
            raise Refusal(415, f"a body is {PROTOBUF} or {JSON}, not {encoding[:60]!r}; say so in its content-type")
        body = await self._service.buffer.body(request)
        try:
            loop = asyncio.get_running_loop()
            reading = await loop.run_in_executor(self._service.workers, self._write, body, encoding, signal)
        finally:
            self._service.buffer.release(len(body))
        return success(signal, encoding, reading.refused, reading.reason)

    def _write(self, body: bytes, encoding: str, signal: Signal) -> Reading:
        """Read a request and write it to the spool, in a thread."""
        try:
            reading = _READERS[encoding](body, signal)
        except TooLarge as error:
            raise Refusal(413, str(error)) from None
        except Malformed as error:
            raise Refusal(400, str(error)) from None
        for line in reading.lines:
            if not self._service.spool.write_document(line.text, spans=line.spans, records=line.records):
                message = "what was sent can't be written here just now; send it again later"
                raise Refusal(503, message, {"retry-after": str(RETRY_SECONDS)})
        return reading

    def knows_token(self, headers: Headers) -> bool:
        """Whether a request shows the token; without one there is nothing to show."""
        token = self._service.token
        shown = headers.get("authorization", "").encode("latin-1")
        return token is not None and hmac.compare_digest(shown, f"Bearer {token}".encode())

    def _check_token(self, request: Request) -> None:
        if self._service.token is not None and not self.knows_token(request.headers):
            message = "this receiver wants its token, in the header 'authorization: Bearer …'"
            raise Refusal(401, message, {"www-authenticate": "Bearer"})


async def _health(request: Request) -> Response:
    return Response(b'{"status":"ok"}', media_type=JSON)


async def _forget(request: Request, error: Exception) -> Response:
    """Answer a sender that has hung up; it sends again what it wants kept."""
    return Response(status_code=400)


def _refusal(headers: Headers, status: int, message: str) -> Response:
    return failure(Refusal(status, message), _encoding_of(headers))


def _encoding(request: Request) -> str:
    return _encoding_of(request.headers)


def _encoding_of(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
