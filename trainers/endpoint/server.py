"""An address on this machine: one web application, served by a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable

import uvicorn
from starlette.applications import Starlette

from tracetune.errors import EndpointError

# Longer than a program thinks between two calls: a connection that is closed just as a
# client takes it up again costs that client a retry.
KEEP_ALIVE_SECONDS = 600
# How long a stop waits for clients that do not read their answers.
FAREWELL_SECONDS = 1


class Server:
    """Serves an application until it is stopped; it can be started once.

    Args:
        name: what error messages call it.
        host: the address to listen at.
        port: 0 takes a free one.
    """

    def __init__(self, name: str, host: str, port: int) -> None:
        self._name = name
        self._host, self._port = host, port
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """Where clients find it.

        Raises:
            EndpointError: if it has not been started.
        """
        if self._socket is None:
            raise EndpointError(f"the endpoint of {self._name!r} has no address yet; start it first")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/v1"

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not been stopped."""
        return self._server is not None and not self._server.should_exit

    def start(self, application: Starlette, farewell: Callable[[], Awaitable[None]] | None = None) -> None:
        """Listen, and answer.

        Args:
            application: what answers.
            farewell: awaited in the server's own loop once it has stopped.

        Raises:
            EndpointError: if the address is taken, or it has been started before.
        """
        if self._thread is not None:
            raise EndpointError(f"the endpoint of {self._name!r} has been started before; make a new one")
        self._socket = _listening(self._host, self._port)
        self._port = self._socket.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(application, farewell, ready)),
            name="tracetune-endpoint",
            daemon=True,
        )
        self._thread.start()
        ready.wait()

    def stop(self) -> None:
        """Close the address."""
        if self._thread is not None and self._server is not None and self.is_running:
            self._server.should_exit = True
            self._thread.join()

    def soon(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function in the server's loop, from any thread."""
        assert self._loop is not None  # whoever has something to hand out was asked by way of the loop
        self._loop.call_soon_threadsafe(function, *arguments)

    async def _serve(
        self, application: Starlette, farewell: Callable[[], Awaitable[None]] | None, ready: threading.Event
    ) -> None:
        assert self._socket is not None
        self._loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            application,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
            server_header=False,
            date_header=False,
        )
        self._server = uvicorn.Server(config)
        ready.set()
        await self._server.serve(sockets=[self._socket])
        if farewell is not None:
            await farewell()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is named: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise EndpointError(
            f"the endpoint can't listen at {host}:{port}: {error.strerror}; choose another port"
        ) from None
    return listener
