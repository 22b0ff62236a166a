"""A service on loopback that says what it is told to say, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tracetune.types import Upstream

# Writes the answer to one request with `send_response`, `end_headers` and `wfile`.
Script = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@dataclass
class Asked:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class ScriptedService:
    """What came, and what is answered next."""

    script: Script
    port: int = 0
    asked: list[Asked] = field(default_factory=list)

    @property
    def upstream(self) -> Upstream:
        """Where it answers."""
        return Upstream(f"http://127.0.0.1:{self.port}/v1", api_key="upstream-key")


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedService]:
    """Serve as the script says until the block ends."""
    service = ScriptedService(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            service.asked.append(Asked(self.path, headers, body))
            service.script(self, body)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(content: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> Script:
    """A script that always gives the same answer."""

    def script(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        handler.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return script
