"""The lines of a stretch of a segment, by what they are: what DuckDB reads, it reads of them alone.

A process begins all its lines alike, so what stands around a span or a record is only
compared. Each kind is then a table of line numbers and texts that point into the
segment, in batches that DuckDB reads side by side: nothing is copied. A line belongs to
the others, which Python decodes, until it is taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tracetune.tracer import encoding

# DuckDB reads each batch on one thread.
_BATCH_LINES = 2048
# Looked through in pieces that stay in the processor's cache.
_PIECE_BYTES = 1024 * 1024
# Arrow counts bytes in 32 bits.
_LONGEST = 2**31 - 1

_SCHEMA = pa.schema([("number", pa.int64()), ("line", pa.string_view())])
# A view of a text: its length, its first four bytes, the buffer it lies in and its place there.
_VIEW = np.dtype([("length", "<i4"), ("prefix", "<u4"), ("buffer", "<i4"), ("offset", "<i4")])

# What stands around the one span, or the one record, of a line.
_SPAN_OPENING_END = f'"scope":{{"name":"{encoding.SCOPE_NAME}"}},"spans":['.encode()
_RECORD_OPENING = b"".join(encoding.record_line("", {}, {}, 0).partition(b'"logRecords":[')[:2])
_CLOSING = b"]}]}]}\n"
# A time in nanoseconds has nineteen digits, from 2001 to 2286; a record of another time is left to Python.
_EVENT_NAME_AT = len('{"timeUnixNano":"1700000000000000000",')


class PlainLines:
    """Whole lines, and which of them are the tracer's own.

    Args:
        text: the lines.

    Attributes:
        spans: the spans, as a table of `number` and `line`, without what stands around them.
        resource: of the spans, as JSON; one process has one.

    Example:
        >>> PlainLines(b"{}").spans.num_rows
        0
    """

    def __init__(self, text: bytes | memoryview) -> None:
        self._text = np.frombuffer(text, np.uint8)
        self._buffer = pa.py_buffer(text)
        self._offsets = _offsets(self._text)
        self._is_other = np.ones(len(self._offsets) - 1, dtype=bool)
        lines = self._lines()
        is_closed = pc.ends_with(lines, _CLOSING)
        try:
            lines.cast(pa.string())
        except pa.ArrowInvalid:  # a text for DuckDB is UTF-8: it gets the lines that are
            is_closed = pc.and_(is_closed, pa.array(map(_is_utf8, lines), pa.bool_()))
        opening, self.resource = _span_opening(lines)
        self.spans = self._table(_numbers(lines, opening, is_closed), opening)
        self._records = _numbers(lines, _RECORD_OPENING, is_closed)

    def records(self, event_name: str) -> Any:
        """The records of one name, as `spans` are."""
        name = np.frombuffer(f'"eventName":"{event_name}",'.encode(), np.uint8)
        places = self._offsets[self._records] + len(_RECORD_OPENING) + _EVENT_NAME_AT
        is_within = places + len(name) <= self._offsets[self._records + 1]
        numbers, places = self._records[is_within], places[is_within]
        is_such = (self._text[places[:, np.newaxis] + np.arange(len(name))] == name).all(axis=1)
        return self._table(numbers[is_such], _RECORD_OPENING)

    def take(self, rows: Any) -> None:
        """These rows have been read."""
        self._is_other[rows["number"].to_numpy()] = False

    def leave(self, numbers: Any) -> None:
        """The lines of these numbers have not, after all."""
        self._is_other[numbers] = True

    def others(self, start: int) -> list[tuple[int, bytes]]:
        """The lines that were not taken, with their offsets in a segment in which the text begins at `start`."""
        found = []
        for number in np.flatnonzero(self._is_other):
            first, end = self._offsets[number : number + 2]
            if line := self._text[first:end].tobytes().rstrip(b"\n"):
                found.append((start + int(first), line))
        return found

    def _lines(self) -> Any:
        """The lines, ends included; none where Arrow can't count that far."""
        if len(self._text) > _LONGEST:
            return pa.array([], pa.binary())
        offsets = pa.py_buffer(self._offsets.astype(np.int32))
        return pa.BinaryArray.from_buffers(pa.binary(), len(self._offsets) - 1, [None, offsets, self._buffer])

    def _table(self, numbers: Any, opening: bytes) -> Any:
        views = np.zeros(len(numbers), dtype=_VIEW)
        views["offset"] = self._offsets[numbers] + len(opening)
        views["length"] = self._offsets[numbers + 1] - len(_CLOSING) - views["offset"]
        # Longer than twelve bytes in any case, or its bytes would have to stand in the view itself.
        numbers, views = numbers[views["length"] > _VIEW.itemsize], views[views["length"] > _VIEW.itemsize]
        prefixes = self._text[views["offset"][:, np.newaxis] + np.arange(4)]
        views["prefix"] = np.ascontiguousarray(prefixes).view("<u4").reshape(-1)
        texts = pa.Array.from_buffers(pa.string_view(), len(views), [None, pa.py_buffer(views), self._buffer])
        rows = pa.table([pa.array(numbers, pa.int64()), texts], schema=_SCHEMA)
        return pa.Table.from_batches(rows.to_batches(max_chunksize=_BATCH_LINES), schema=_SCHEMA)


def _numbers(lines: Any, opening: bytes, is_closed: Any) -> Any:
    """The numbers of the lines that begin so, and are closed."""
    is_such = pc.and_(pc.starts_with(lines, opening), is_closed)
    return np.flatnonzero(is_such.to_numpy(zero_copy_only=False))


def _offsets(text: Any) -> Any:
    """Where each line begins, and where the last ends."""
    ends = [
        np.flatnonzero(text[first : first + _PIECE_BYTES] == ord("\n")) + first + 1
        for first in range(0, len(text), _PIECE_BYTES)
    ]
    offsets = np.concatenate([np.zeros(1, np.int64), *ends])
    return offsets if offsets[-1] == len(text) else np.append(offsets, len(text))


def _span_opening(lines: Any) -> tuple[bytes, str | None]:
    """What stands before the span in the lines of a segment, and the resource in it: those of its first span."""
    for line in lines:
        before, end, _ = line.as_py().partition(_SPAN_OPENING_END)
        try:
            document = orjson.loads(before + end + _CLOSING)
        except orjson.JSONDecodeError:
            continue
        match document:
            case {"resourceSpans": [{"scopeSpans": [{"spans": []}]} as only], **others} if not others:
                resource = only.get("resource")
                return before + end, orjson.dumps(resource).decode() if resource else None
    return _SPAN_OPENING_END, None  # with which no document begins


def _is_utf8(line: Any) -> bool:
    try:
        line.as_py().decode()
    except UnicodeDecodeError:
        return False
    return True
