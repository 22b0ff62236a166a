"""The server of every address that tracetune opens: a web application on a thread, within limits.

A connection whose request does not come whole in time is closed, so that nobody who sends
half of one keeps others waiting. Where only this machine can reach the address, a page in
a browser can too: a request that names another host or comes from a page is refused,
unless it shows the address's secret.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable

import h11
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tracetune.errors import TracetuneError

# How long the head of a request may take to come, from its first byte or from the connection's beginning.
HEAD_SECONDS = 10.0
# How long the body of a request may take to come.
BODY_SECONDS = 30.0


class Server:
    """Serves an application until it is stopped; it can be started once.

    Args:
        name: what error messages call it.
        host: the address to listen at.
        port: 0 takes a free one.
        error: what is raised where it cannot be started.
        keep_alive_seconds: how long a connection may wait for its next request.
        farewell_seconds: how long a stop waits for answers that are under way.
        head_seconds: how long the head of a request may take to come.
        body_seconds: how long its body may take. The application says so after that time;
            whoever goes on sending is cut off after twice as long.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        *,
        error: type[TracetuneError],
        keep_alive_seconds: int,
        farewell_seconds: int,
        head_seconds: float = HEAD_SECONDS,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._name = name
        self._host, self._port = host, port
        self._error = error
        self._keep_alive_seconds, self._farewell_seconds = keep_alive_seconds, farewell_seconds
        self._head_seconds, self._body_seconds = head_seconds, body_seconds
        self._listener: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where clients find it.

        Raises:
            TracetuneError: if it has not been started, of the kind that it was given.
        """
        if self._listener is None:
            raise self._error(f"{self._name} has no address yet; start it first")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not been stopped."""
        return self._server is not None and not self._server.should_exit

    def start(self, application: ASGIApp, farewell: Callable[[], Awaitable[None]] | None = None) -> None:
        """Listen, and answer.

        Args:
            application: what answers.
            farewell: awaited in the server's own loop once it has stopped.

        Raises:
            TracetuneError: if the address is taken, or it has been started before.
        """
        if self._thread is not None:
            raise self._error(f"{self._name} has been started before; make a new one")
        self._listener = self._listening()
        self._port = self._listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(application, farewell, ready)),
            name="tracetune-server",
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
        self, application: ASGIApp, farewell: Callable[[], Awaitable[None]] | None, ready: threading.Event
    ) -> None:
        assert self._listener is not None
        self._loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            application,
            # Named, so that it is the same one whatever else is installed.
            http=_connection_type(self._head_seconds, 2 * self._body_seconds),
            lifespan="off",
            log_config=None,
            access_log=False,
            ws="none",
            timeout_keep_alive=self._keep_alive_seconds,
            timeout_graceful_shutdown=self._farewell_seconds,
            server_header=False,
            date_header=False,
        )
        self._server = uvicorn.Server(config)
        ready.set()
        await self._server.serve(sockets=[self._listener])
        if farewell is not None:
            await farewell()

    def _listening(self) -> socket.socket:
        listener = None
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
            )[0]
            # asyncio turns Nagle's delay off only where the protocol is named: 40 ms an answer.
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except (OSError, OverflowError, UnicodeError) as error:
            if listener is not None:
                listener.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise self._error(
                f"{self._name} can't listen at {self._host}:{self._port}: {reason}; choose another address or port"
            ) from None
        return listener


class RefuseForeign:
    """Refuses requests that name another host, or come from a page in a browser.

    A page may send requests to this machine, and under a name of its own that leads here
    it may even read the answers. It cannot know a secret, so a request that shows it is let in.

    Args:
        application: what answers the others.
        host: the address that is listened at; names are checked only where it is loopback.
        knows_secret: whether a request's headers show the secret of the address.
        refuse: the answer, of a status and a message.
    """

    def __init__(
        self,
        application: ASGIApp,
        *,
        host: str,
        knows_secret: Callable[[Headers], bool],
        refuse: Callable[[Headers, int, str], Response],
    ) -> None:
        self._application = application
        self._host = host
        self._knows_secret = knows_secret
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the application answer."""
        answer = self._application
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            reason = self._reason(headers)
            if reason is not None and not self._knows_secret(headers):
                answer = self._refuse(headers, 403, reason)
        await answer(scope, receive, send)

    def _reason(self, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        if is_loopback(self._host) and any(not self._is_own(host) for host in hosts):
            return (
                f"this address is for this machine, and the request names the host {hosts[-1][:100]!r}; send it to "
                f"localhost or {self._host}, or show the address's key or token"
            )
        if "origin" in headers:
            return (
                f"this address takes nothing from pages in a browser, and the request comes from "
                f"{headers['origin'][:100]!r}; show the address's key or token, or send it from a program"
            )
        return None

    def _is_own(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        return is_loopback(name.lower()) or name.lower() == self._host.lower()


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


def _connection_type(head_seconds: float, body_seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which waits for the rest of a request for ever, with limits to that."""
    limits = {h11.IDLE: head_seconds, h11.SEND_BODY: body_seconds}

    class Connection(H11Protocol):
        _awaited: type | None = None
        _overdue: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            # Part of the next request may have come with this one.
            if self.conn.trailing_data[0]:
                self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Have the time run while a head or a body is awaited; more of the same does not start it anew."""
            awaited = self.conn.their_state
            if awaited is self._awaited and self._overdue is not None:
                return
            self._unwatch()
            self._awaited = awaited
            if awaited in limits and not self.transport.is_closing():
                self._overdue = self.loop.call_later(limits[awaited], self._give_up)

        def _unwatch(self) -> None:
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None

        def _give_up(self) -> None:
            if self._awaited is h11.IDLE and self.conn.trailing_data[0]:
                self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    return Connection
