"""Sending to an OTLP/HTTP server: in batches, packed, again where the server says later.

Everything goes as protobuf, which every server of OTLP understands.
"""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any

import httpx

from tracetune.adapters.otlp.answers import JSON, PROTOBUF, failure_message, partial_success
from tracetune.adapters.otlp.json_encoding import Malformed, checked, fill
from tracetune.adapters.otlp.signals import LOGS, TRACES, Signal
from tracetune.errors import ExportError, InvalidInput

REQUEST_SECONDS = 30.0
# Longer than most servers restart.
MAX_ATTEMPTS = 8
_LONGEST_WAIT = 120.0
_RETRIED = frozenset({429, 502, 503, 504})
# What servers answer that take spans alone.
_NOT_SERVED = frozenset({404, 405, 415, 501})


@dataclass(slots=True)
class Sent:
    """What a sender has sent.

    Attributes:
        spans: spans that the server took.
        records: log records that it took.
        refused: spans and records that it refused.
        reason: why, of the first of them.
        unserved: log records that were not sent, because the server takes none.
    """

    spans: int = 0
    records: int = 0
    refused: int = 0
    reason: str = ""
    unserved: int = 0


class Sender:
    """Sends OTLP documents to one server.

    Args:
        url: the server's address; with or without `/v1/traces`.
        headers: that each request has beside its own.
        first_wait: seconds before the first repetition; each later one waits twice as
            long, unless the server says how long.

    Raises:
        InvalidInput: if the address is not one of HTTP, or a header can't be sent.

    Example:
        >>> with Sender("http://127.0.0.1:4318", {"x-project": "try"}) as sender:  # doctest: +SKIP
        ...     sender.send({"resourceSpans": [...]})
    """

    def __init__(self, url: str, headers: Mapping[str, str] = {}, *, first_wait: float = 1.0) -> None:
        self.sent = Sent()
        self._base = _base_address(url)
        self._first_wait = first_wait
        self._takes_logs = True
        try:
            self._client = httpx.Client(headers=dict(headers), timeout=REQUEST_SECONDS)
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"a header cannot be sent: {error}") from error

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def send(self, document: Mapping[str, Any]) -> None:
        """Send one document, and wait until the server has taken it.

        Raises:
            ExportError: if the server cannot be reached, or does not take it.
        """
        signal = TRACES if TRACES.resources in document else LOGS
        count = sum(len(scope[signal.items]) for item in document[signal.resources] for scope in item[signal.scopes])
        if signal is LOGS and not self._takes_logs:
            self.sent.unserved += count
            return
        request = signal.request()
        try:
            fill(request, checked(document, request.DESCRIPTOR))
        except Malformed as error:
            raise ExportError(f"the store holds what OTLP cannot express: {error}") from error
        response = self._post(signal, gzip.compress(request.SerializeToString(), compresslevel=1))
        if signal is LOGS and response.status_code in _NOT_SERVED:
            self._takes_logs = False
            self.sent.unserved += count
            return
        if not response.is_success:
            raise ExportError(f"{self._base}{signal.path} answered {_words(response)}")
        refused, reason = partial_success(response.content, _encoding(response), signal)
        self.sent.refused += refused
        self.sent.reason = self.sent.reason or (reason if refused else "")
        if signal is TRACES:
            self.sent.spans += count - refused
        else:
            self.sent.records += count - refused

    def _post(self, signal: Signal, content: bytes) -> httpx.Response:
        url = self._base + signal.path
        headers = {"content-type": PROTOBUF, "content-encoding": "gzip"}
        for attempt in range(MAX_ATTEMPTS):
            try:
                response = self._client.post(url, content=content, headers=headers)
            except httpx.LocalProtocolError as error:
                raise InvalidInput(f"a header cannot be sent: {error}") from error
            except httpx.TransportError as error:
                # A server that was never there will hardly come up now; one that was is restarting.
                if not (self.sent.spans or self.sent.records) or attempt + 1 == MAX_ATTEMPTS:
                    raise ExportError(
                        f"{url} cannot be reached ({error}); start the server there, or give another address"
                    ) from error
                time.sleep(self._wait(attempt, None))
                continue
            if response.status_code not in _RETRIED or attempt + 1 == MAX_ATTEMPTS:
                return response
            time.sleep(self._wait(attempt, response.headers.get("retry-after")))
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int, retry_after: str | None) -> float:
        asked = _seconds(retry_after)
        if asked is None:
            # Spread, so that many senders do not come back at once.
            asked = self._first_wait * 2**attempt * random.uniform(0.8, 1.2)  # noqa: S311  nothing secret
        return min(max(asked, 0.0), _LONGEST_WAIT)


def headers_of(options: Iterable[str]) -> dict[str, str]:
    """Headers given as `name=value`.

    Raises:
        InvalidInput: if one is not.

    Example:
        >>> headers_of(["authorization=Bearer abc="])
        {'authorization': 'Bearer abc='}
    """
    headers = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not (name.strip() and equals):
            raise InvalidInput(f"a header is given as NAME=VALUE, not as {option!r}")
        headers[name.strip()] = value.strip()
    return headers


def _base_address(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidInput(f"{url!r} is not an address to send to: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidInput(f"{url!r} is not an address to send to; give one such as http://127.0.0.1:4318")
    return url.removesuffix("/").removesuffix(TRACES.path).removesuffix("/")


def _seconds(retry_after: str | None) -> float | None:
    """How long a server asks to wait, in seconds or until a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        date = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return (date - datetime.now(UTC)).total_seconds() if date.tzinfo else None


def _encoding(response: httpx.Response) -> str:
    return JSON if response.headers.get("content-type", "").startswith(JSON) else PROTOBUF


def _words(response: httpx.Response) -> str:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    message = failure_message(response.content, kind)
    return f"{response.status_code} {response.reason_phrase}{f' ({message})' if message else ''}"
