"""`tracetune serve` as a process, and good requests in both encodings."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tracetune.adapters.otlp.json_encoding import fill

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
REQUESTS = {"/v1/traces": ExportTraceServiceRequest, "/v1/logs": ExportLogsServiceRequest}
# One for all: each client reads every certificate that the machine trusts.
http = httpx.Client()
START = 1_767_225_600_000_000_000


@dataclass
class Serving:
    """A `tracetune serve` that runs."""

    process: subprocess.Popen[str]
    url: str

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ask it to end; its exit status, and what it said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def serving(store: Path, *options: str, **process: Any) -> Iterator[Serving]:
    """Run `tracetune serve` on a free port until the end of the block."""
    command = [sys.executable, "-m", "tracetune.cli", "serve", str(store), "--port", "0", *options]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **process)
    try:
        assert started.stderr is not None
        said = started.stderr.readline()
        assert " receives traces for " in said, said + started.stderr.read()
        yield Serving(started, said.split()[0])
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGKILL)
        started.communicate()


def attribute(key: str, value: Any) -> dict[str, Any]:
    """One attribute, in OTLP/JSON."""
    kinds = {str: "stringValue", bool: "boolValue", int: "intValue", float: "doubleValue"}
    return {"key": key, "value": {kinds[type(value)]: str(value) if type(value) is int else value}}


def a_span(number: int, **fields: Any) -> dict[str, Any]:
    """One good span in canonical OTLP/JSON; its id is its number."""
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": f"span {number}",
        "kind": 3,
        "startTimeUnixNano": str(START + number),
        "endTimeUnixNano": str(START + number + 1000),
        "attributes": [attribute("number", number)],
        **fields,
    }


def a_record(number: int, **fields: Any) -> dict[str, Any]:
    """One good log record."""
    return {
        "timeUnixNano": str(START + number),
        "eventName": "seen",
        "body": {"stringValue": f"record {number}"},
        "attributes": [attribute("number", number)],
        **fields,
    }


def request(path: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A request with these spans or records, of one resource and scope."""
    resource = {"attributes": [attribute("service.name", "shop")]}
    scope = {"name": "a library", "version": "1.0"}
    if path == "/v1/traces":
        return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": list(items)}]}]}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": list(items)}]}]}


def good(path: str, number: int) -> dict[str, Any]:
    """A request with one good item."""
    return request(path, [a_span(number) if path == "/v1/traces" else a_record(number)])


def body(path: str, document: dict[str, Any], encoding: str) -> bytes:
    """A document as a request's body."""
    if encoding == JSON:
        return orjson.dumps(document)
    message = REQUESTS[path]()
    fill(message, document)
    return message.SerializeToString()


def headers(encoding: str, *, packed: bool = False) -> dict[str, str]:
    """What a request of that encoding must say."""
    return {"content-type": encoding, **({"content-encoding": "gzip"} if packed else {})}


def packed(content: bytes) -> bytes:
    """A body as gzip."""
    return gzip.compress(content, 1)


def segments_of(store: Path) -> list[str]:
    """The names of the files in a store's spool."""
    return sorted(os.listdir(store.with_name(store.name + ".spool")))
