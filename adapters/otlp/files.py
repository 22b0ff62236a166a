"""OTLP in files: the Collector's JSON lines, its protobuf frames, and single protobuf messages.

What a file is is told by its first bytes, not by its name, and so is how it is packed.
Nothing but one line, or one frame, is held in memory; a file without either (a single
protobuf message) is read whole.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError

from tracetune.adapters.formats import DEFAULTS, FormatOptions, Line, Refused
from tracetune.adapters.otlp.documents import Reading, read_document, read_protobuf
from tracetune.adapters.otlp.json_encoding import Malformed, read_json
from tracetune.adapters.otlp.signals import LOGS, TRACES, Signal, snake_case
from tracetune.adapters.packing import skip_blank, unpacked

# Of one line, one frame or one message.
PIECE_BYTES = 128 * 1024 * 1024
_FRAME_HEADER_BYTES = 4
# The key of a message's first field: the resources of a request. As the first byte of
# a frame's length it would mean 160 MB.
_MESSAGE_START = b"\x0a"
_START_BYTES = 256
_OBJECT_START = re.compile(rb'\s*\{\s*["}]')
_NOT_OTLP = "neither OTLP as JSON lines nor OTLP as protobuf"


def read(file: BinaryIO, options: FormatOptions = DEFAULTS) -> Iterator[Line | Refused]:
    """The spans and log records of a file, and what in it cannot be read.

    Example:
        >>> list(read(io.BytesIO(b'{"resourceMetrics": []}')))
        [Refused(place='line 1', reason='metrics and profiles are not kept', count=1)]
    """
    whole = unpacked(file)
    try:
        start = whole.peek(_START_BYTES)[:_START_BYTES].removeprefix(codecs.BOM_UTF8)
        # A message of 123 bytes begins with a line end and a brace, but no message goes on as an object does.
        if _OBJECT_START.match(start) or not start.strip() or start.lstrip(b" \t\r")[:1] == b"{":
            yield from _json_lines(whole)
        elif start.startswith(_MESSAGE_START):
            yield from _message(whole)
        else:
            yield from _frames(whole)
    except (EOFError, OSError) as error:
        yield Refused("the rest of it", f"it cannot be read: {error}")


def _json_lines(file: io.BufferedReader) -> Iterator[Line | Refused]:
    number, was_blank = 0, False
    while text := file.readline(PIECE_BYTES):
        number += 1
        place = f"line {number}"
        if len(text) == PIECE_BYTES:
            while text and not text.endswith(b"\n"):
                text = file.readline(PIECE_BYTES)
            yield Refused(place, f"it is longer than {PIECE_BYTES} bytes")
        elif stripped := text.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip():
            yield from _json_line(stripped, place)
            was_blank = False
        else:
            # Of many blank lines not each is looked at; after one alone that would cost more than it spares.
            number += skip_blank(file) if was_blank else 0
            was_blank = True


def _json_line(text: bytes, place: str) -> Iterator[Line | Refused]:
    try:
        document = read_json(text)
        for signal in _signals_in(document):
            yield from _pieces(read_document(document, signal), place)
    except Malformed as error:
        yield Refused(place, str(error))


def _signals_in(document: Any) -> list[Signal]:
    fields = document.keys() if isinstance(document, dict) else set()
    if signals := [signal for signal in (TRACES, LOGS) if signal.resources in fields]:
        return signals
    if fields & {"resourceMetrics", "resourceProfiles"}:
        raise Malformed("metrics and profiles are not kept")
    raise Malformed("not OTLP: neither resourceSpans nor resourceLogs")


def _message(file: io.BufferedReader) -> Iterator[Line | Refused]:
    text = file.read(PIECE_BYTES + 1)
    if len(text) > PIECE_BYTES:
        yield Refused("the message", f"it is longer than {PIECE_BYTES} bytes")
    else:
        yield from _protobuf(text, "the message")


def _frames(file: io.BufferedReader) -> Iterator[Line | Refused]:
    """The messages of a file in which each has its length before it, as four bytes, the highest first."""
    number = 0
    while header := file.read(_FRAME_HEADER_BYTES):
        number += 1
        place = f"frame {number}"
        size = int.from_bytes(header)
        if len(header) < _FRAME_HEADER_BYTES or size > PIECE_BYTES:
            # Without a length there is no telling where the next frame begins.
            yield Refused(place, _NOT_OTLP if number == 1 else "its length makes no sense; what follows is not read")
            return
        text = file.read(size)
        if len(text) < size:
            yield Refused(place, _NOT_OTLP if number == 1 else f"it ends after {len(text)} of {size} bytes")
            return
        yield from _protobuf(text, place)


def _protobuf(text: bytes, place: str) -> Iterator[Line | Refused]:
    try:
        signal = _signal_of(text)
        yield from _pieces(read_protobuf(text, signal), place)
    except Malformed as error:
        yield Refused(place, str(error))


def _signal_of(text: bytes) -> Signal:
    """What a message holds.

    Requests of all signals look alike down to their items. Spans begin with their trace
    id, records have a time in its place; read as the other, each has neither.
    """
    spans = _items(text, TRACES)
    if spans == [] or any(len(span.trace_id) == 16 for span in spans or ()):
        return TRACES
    if any(record.time_unix_nano or record.observed_time_unix_nano for record in _items(text, LOGS) or ()):
        return LOGS
    raise Malformed("not OTLP protobuf with spans or log records")


def _items(text: bytes, signal: Signal) -> list[Any] | None:
    """The items of a message read as that signal; None where it cannot be."""
    request = signal.request()
    try:
        request.ParseFromString(text)
    except DecodeError:
        return None
    found = [request]
    for name in (signal.resources, signal.scopes, signal.items):
        found = [part for message in found for part in getattr(message, snake_case(name))]
    return found


def _pieces(reading: Reading, place: str) -> Iterator[Line | Refused]:
    yield from reading.lines
    if reading.refused:
        yield Refused(place, reading.reason, reading.refused)
