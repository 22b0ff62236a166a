"""The receiver: an address that OpenTelemetry exporters can send to, and the spool behind it."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import uvicorn

from tracetune.adapters.otlp.app import Service, application
from tracetune.adapters.otlp.bodies import BODY_SECONDS, Buffer
from tracetune.errors import InvalidInput, ReceiverError
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
        self._host, self._port, self._token = host, port, token
        self._body_seconds = body_seconds
        self._spool = Spool(spool_folder(store))
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Receiver:
        """Listen, and receive.

        Raises:
            ReceiverError: if the address is taken, or the receiver has been started before.
        """
        if self._thread is not None:
            raise ReceiverError("this receiver has been started before; make a new one")
        listener = _listening(self._host, self._port)
        self._port = listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(listener, ready), name="tracetune-otlp", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def stop(self) -> None:
        """Finish the requests that are on their way, close the address, and close the segment whole."""
        if self._thread is None or self._server is None or self._server.should_exit:
            return
        self._server.should_exit = True
        self._thread.join()
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
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def counts(self) -> SpoolCounts:
        """What has been received and written so far."""
        return self._spool.counts

    def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        asyncio.run(self._serving(listener, ready))

    async def _serving(self, listener: socket.socket, ready: threading.Event) -> None:
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="tracetune-otlp-reader") as workers:
            service = Service(self._spool, self._token, workers, Buffer(self._body_seconds))
            config = uvicorn.Config(
                application(service),
                lifespan="off",
                log_config=None,
                access_log=False,
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=FAREWELL_SECONDS,
                server_header=False,
                date_header=False,
            )
            self._server = uvicorn.Server(config)
            ready.set()
            await self._server.serve(sockets=[listener])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0")
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        # asyncio turns Nagle's delay off only where the protocol is named.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise ReceiverError(f"the receiver can't listen at {host}:{port}: {reason}; choose another address") from None
    return listener
