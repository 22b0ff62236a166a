"""What a receiver answers, in the encoding that it was asked in, and what an exporter reads in such an answer."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status
from starlette.responses import Response

from tracetune.adapters.otlp.json_encoding import Malformed, checked, document_of, fill
from tracetune.adapters.otlp.signals import Signal

PROTOBUF = "application/x-protobuf"
JSON = "application/json"

# HTTP's statuses in gRPC's words.
_GRPC_CODES = {400: 3, 401: 16, 403: 7, 404: 12, 405: 12, 408: 4, 413: 8, 415: 3, 503: 14}


class Refusal(Exception):
    """A request that is not taken.

    Args:
        status: of the HTTP answer.
        message: what is wrong, and what to do.
        headers: that the answer must have.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] = {}) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


def success(signal: Signal, encoding: str, refused: int, reason: str) -> Response:
    """The answer to a request that was taken, but for as many items as were refused."""
    document = {}
    if refused:
        words = f"{refused} {signal.noun}{'s were' if refused > 1 else ' was'} refused; the first: {reason}"
        document = {"partialSuccess": {signal.rejected: str(refused), "errorMessage": words}}
    if encoding == JSON:
        return Response(orjson.dumps(document), media_type=JSON)
    response = signal.response()
    fill(response, document)
    return Response(response.SerializeToString(), media_type=PROTOBUF)


def failure(refusal: Refusal, encoding: str) -> Response:
    """The answer to a request that was not taken: a `google.rpc.Status`."""
    status = Status(code=_GRPC_CODES.get(refusal.status, 2), message=str(refusal))
    content = status.SerializeToString() if encoding == PROTOBUF else orjson.dumps(document_of(status))
    return Response(content, refusal.status, dict(refusal.headers), encoding if encoding == PROTOBUF else JSON)


def partial_success(content: bytes, encoding: str, signal: Signal) -> tuple[int, str]:
    """How many items a receiver says that it refused, and why; none where its answer cannot be read."""
    try:
        if encoding == JSON:
            document = checked(orjson.loads(content), signal.response.DESCRIPTOR)
        else:
            response = signal.response()
            response.ParseFromString(content)
            document = document_of(response)
    except (DecodeError, Malformed, orjson.JSONDecodeError):
        return 0, ""
    partial = document.get("partialSuccess", {})
    return int(partial.get(signal.rejected, 0)), partial.get("errorMessage", "")


def failure_message(content: bytes, encoding: str) -> str:
    """What a receiver says is wrong; its answer's text where that is no `google.rpc.Status`."""
    try:
        if encoding == PROTOBUF:
            return str(Status.FromString(content).message)
        return str(checked(orjson.loads(content), Status.DESCRIPTOR).get("message", ""))
    except (DecodeError, Malformed, orjson.JSONDecodeError):
        return content[:500].decode(errors="replace").strip()
