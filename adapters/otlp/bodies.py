"""The body of a request, within limits: of size, of what it unpacks to, and of time."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from tracetune.adapters.otlp.answers import Refusal
from tracetune.http import BODY_SECONDS

# As the Collector has it.
BODY_BYTES = 20 * 1024 * 1024
# All bodies that are being read or written, together.
BUFFERED_BYTES = 16 * BODY_BYTES
# Read and dropped of a body that is refused, so that its sender gets to read why.
_DROPPED_BYTES = 4 * BODY_BYTES


class Buffer:
    """Room for the bodies of all requests, as bytes that are free.

    Args:
        body_seconds: how long one body may take to come.
    """

    def __init__(self, body_seconds: float = BODY_SECONDS) -> None:
        self._free = BUFFERED_BYTES
        self._body_seconds = body_seconds

    async def body(self, request: Request) -> bytes:
        """A request's body, unpacked; whoever takes it gives it back with `release`.

        Raises:
            Refusal: if it is too large, too slow, packed in a way that is not known, or
                if there is no room for it just now.
        """
        packing = request.headers.get("content-encoding", "identity").strip().lower()
        if packing not in ("gzip", "identity", ""):
            raise Refusal(415, f"a body is packed with gzip or not at all, not with {packing[:40]!r}")
        content = bytearray()
        unpack = _Gunzip() if packing == "gzip" else None
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in _chunks(request):
                    self._keep(content, unpack.of(chunk, BODY_BYTES - len(content)) if unpack else chunk)
            if unpack is not None:
                unpack.check_end()
            return bytes(content)
        except BaseException as error:
            self.release(len(content))
            if isinstance(error, TimeoutError):
                message = f"the body did not come within {self._body_seconds:g} seconds"
                raise Refusal(408, message, {"connection": "close"}) from None
            raise

    def release(self, size: int) -> None:
        """Give back the room of a body that has been dealt with."""
        self._free += size

    async def drop(self, request: Request) -> None:
        """Read what is left of a request that has been refused."""
        dropped = 0
        try:
            async with asyncio.timeout(self._body_seconds):
                async for chunk in _chunks(request):
                    dropped += len(chunk)
                    if dropped > _DROPPED_BYTES:
                        return
        except (TimeoutError, ClientDisconnect):
            return

    def _keep(self, content: bytearray, chunk: bytes) -> None:
        if len(content) + len(chunk) > BODY_BYTES:
            raise too_large()
        if len(chunk) > self._free:
            raise Refusal(503, "too much is being received at once; send this again later", {"retry-after": "1"})
        self._free -= len(chunk)
        content += chunk


def too_large() -> Refusal:
    """What is said to a body that is larger than one may be."""
    return Refusal(413, f"a body is at most {BODY_BYTES} bytes once it is unpacked; send fewer spans in a request")


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """What has not been read yet of a request's body."""
    while not getattr(request.state, "is_read", False):
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        # Asked again after the last one, the server would wait for the sender to hang up.
        request.state.is_read = not message.get("more_body", False)
        yield message.get("body", b"")


class _Gunzip:
    """Unpacks a stream of gzip members, never more than it is asked for."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(wbits=31)
        self._has_begun = False

    def of(self, packed: bytes, room: int) -> bytes:
        """What the next bytes unpack to.

        Raises:
            Refusal: if that is more than there is room for, or if they are not gzip.
        """
        unpacked = b""
        try:
            while packed:
                if self._decompressor.eof:
                    self._decompressor = zlib.decompressobj(wbits=31)
                self._has_begun = True
                unpacked += self._decompressor.decompress(packed, room + 1 - len(unpacked))
                if len(unpacked) > room:
                    raise too_large()
                packed = self._decompressor.unused_data
        except zlib.error as error:
            raise Refusal(400, f"the body is not the gzip that its content-encoding says: {error}") from None
        return unpacked

    def check_end(self) -> None:
        """Refuse a stream that ends in the middle."""
        if self._has_begun and not self._decompressor.eof:
            raise Refusal(400, "the body is gzip that ends in the middle")
