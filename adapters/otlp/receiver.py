"""The receiver: an address that OpenTelemetry exporters can send to, and the spool behind it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from tracetune.adapters.otlp.app import Service, application
from tracetune.adapters.otlp.bodies import Buffer
from tracetune.errors import InvalidInput, ReceiverError
from tracetune.http import BODY_SECONDS, Server, is_loopback
from tracetune.tracer import Spool, SpoolCounts, spool_folder

PORT = 4318
# Longer than exporters pause between two batches.
KEEP_ALIVE_SECONDS = 75
# How long a stop waits for requests that are on their way.
FAREWELL_SECONDS = 5
# One would do: a second lets a small request overtake a large one.
_WORKERS = 2


class Receiver:
    """Receives OTLP over HTTP and writes it to the spool of a store.

    Args:
        store: path of the DuckDB file; it need not exist.
        host: the address to listen at.
        port: 0 takes a free one.
        token: what senders must show as `authorization: Bearer …`; needed where others
            than this machine can reach the address.
        body_seconds: how long the body of one request may take to come.

    Raises:
        InvalidInput: if the address can be reached from elsewhere and there is no token,
            or the token has characters that a header can't carry.

    Example:
        >>> with Receiver("traces.duckdb", port=0) as receiver:
        ...     receiver.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        token: str | None = None,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            raise InvalidInput("a token is printable ASCII without spaces, or a header can't carry it; choose another")
        if token is None and not is_loopback(host):
            raise InvalidInput(
                f"{host} can be reached from other machines, and anybody there could write into the store; "
                "give a token that senders must show, or listen at 127.0.0.1"
            )
        self._host, self._token = host, token
        self._body_seconds = body_seconds
        self._spool = Spool(spool_folder(store))
        self._server = Server(
            "the receiver",
            host,
            port,
            error=ReceiverError,
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            farewell_seconds=FAREWELL_SECONDS,
            body_seconds=body_seconds,
        )

    def start(self) -> Receiver:
        """Listen, and receive.

        Raises:
            ReceiverError: if the address is taken, or the receiver has been started before.
        """
        workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="tracetune-otlp-reader")

        async def farewell() -> None:
            workers.shutdown()

        service = Service(self._spool, self._token, workers, Buffer(self._body_seconds))
        self._server.start(application(service, self._host), farewell)
        return self

    def stop(self) -> None:
        """Finish the requests that are on their way, close the address, and close the segment whole."""
        if self._server.is_running:
            self._server.stop()
            self._spool.close()

    def __enter__(self) -> Receiver:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where exporters send to: their `OTEL_EXPORTER_OTLP_ENDPOINT`."""
        return self._server.url

    @property
    def counts(self) -> SpoolCounts:
        """What has been received and written so far."""
        return self._spool.counts
