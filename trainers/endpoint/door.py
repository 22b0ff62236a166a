"""The door of an endpoint: who may ask, which model they mean, and what they get that the policy cannot give.

Whatever answers behind it, a local model or a service elsewhere, the key, the limits, the
names and the errors are the same.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tracetune.http import BODY_SECONDS
from tracetune.trainers.endpoint.forwarding import Forwarder
from tracetune.trainers.endpoint.problems import Problem

MAX_BODY_BYTES = 8 * 1024 * 1024
CALL_HEADER = "x-tracetune-call"
MODULE_HEADER = "x-tracetune-module"

Handler = Callable[[Request], Awaitable[Response]] | ASGIApp


@dataclass(frozen=True, slots=True)
class Door:
    """Lets in who has the key, and sends on who wants another model.

    Attributes:
        name: the policy's model name.
        api_key: what clients must send.
        aliases: other names that mean the policy.
        forwarder: takes requests for other models, where there is somewhere to send them.
    """

    name: str
    api_key: str
    aliases: frozenset[str]
    forwarder: Forwarder | None

    def application(self, chat: Handler, complete: Handler) -> Starlette:
        """The web application, in which these two answer for the policy."""
        return Starlette(
            routes=[
                Route("/v1/chat/completions", chat, methods=["POST"]),
                Route("/v1/completions", complete, methods=["POST"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/healthz", self._health, methods=["GET"]),
                Route("/v1/{path:path}", self._elsewhere, methods=["POST"]),
            ],
            exception_handlers={Problem: _show_problem, HTTPException: _show_http_exception},
        )

    async def read(self, request: Request) -> tuple[bytes, dict[str, Any]]:
        """The body of a request, as bytes and as an object.

        Raises:
            Problem: if it comes without the key, is too large, or names no model.
        """
        self._check_key(request)
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > MAX_BODY_BYTES:
                        message = f"the request is larger than {MAX_BODY_BYTES} bytes; shorten it"
                        raise Problem(413, message, code="too_large")
        except TimeoutError:
            message = f"the request did not come within {BODY_SECONDS:g} seconds; send it again"
            raise Problem(408, message, code="too_slow") from None
        try:
            values = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise Problem(400, f"the request is not JSON: {error}", code="invalid_json") from None
        if not isinstance(values, dict):
            raise Problem(400, "the request is not a JSON object", code="invalid_json")
        if not isinstance(values.get("model"), str):
            raise Problem(400, "the request names no 'model'", "model", "missing_required_parameter")
        return bytes(content), values

    def asks_policy(self, values: Mapping[str, Any]) -> bool:
        """Whether a request is for the policy, by whatever name."""
        return values["model"] == self.name or values["model"] in self.aliases

    async def forward(self, request: Request, content: bytes, values: Mapping[str, Any]) -> Response:
        """What the model gives that is asked for and is not the policy.

        Raises:
            Problem: if there is nowhere to send the request, or nobody answers there.
        """
        if self.forwarder is None:
            name = values["model"]
            message = (
                f"there is no model {name!r} here; ask for {self.name!r}, "
                f"or map the name with models={{{name!r}: {self.name!r}}}"
            )
            raise Problem(404, message, "model", "model_not_found")
        return await self.forwarder.pass_on(request, content)

    def knows_key(self, headers: Headers) -> bool:
        """Whether a request shows the key."""
        expected = f"Bearer {self.api_key}"
        return hmac.compare_digest(headers.get("authorization", "").encode(), expected.encode())

    def refusal(self, headers: Headers, status: int, message: str) -> Response:
        """The answer to a request that comes from where none may come from."""
        return json_response(Problem(status, message, code="forbidden").body, status)

    def _check_key(self, request: Request) -> None:
        if not self.knows_key(request.headers):
            raise Problem(401, "this is not the policy endpoint's key; use tt.policy().api_key", code="invalid_api_key")

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        names = [self.name, *sorted(self.aliases)]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "tracetune"} for name in names]
        return json_response({"object": "list", "data": models})

    async def _health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def _elsewhere(self, request: Request) -> Response:
        content, values = await self.read(request)
        if self.asks_policy(values):
            message = (
                f"the policy endpoint does not serve {request.url.path}; call /v1/chat/completions or /v1/completions"
            )
            raise Problem(404, message, code="unknown_url")
        return await self.forward(request, content, values)


def json_response(values: Mapping[str, Any], status: int = 200) -> Response:
    """An answer of one JSON object."""
    return Response(orjson.dumps(values), status_code=status, media_type="application/json")


def event(values: Mapping[str, Any]) -> bytes:
    """A server-sent event of one JSON object."""
    return b"data: " + orjson.dumps(values) + b"\n\n"


async def _show_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return json_response(error.body, error.status)


async def _show_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"the policy endpoint does not serve {request.method} {request.url.path}"
    return json_response(Problem(error.status_code, message, code="unknown_url").body, error.status_code)
