"""The lines of stretches of segments, by what they are: what DuckDB reads, it reads of them alone.

A process begins all its lines alike, so what stands around a span or a record is only
compared. Each kind is then one table over all stretches, of line numbers and texts that
point into the segments, in batches that DuckDB reads side by side: nothing is copied. A
line belongs to the others, which Python decodes, until it is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tracetune.tracer import encoding

# DuckDB reads each batch on one thread, and at once: so many lines stay in the processor's cache until they are rows.
_BATCH_LINES = 512
# Looked through in pieces that stay in the processor's cache.
_PIECE_BYTES = 1024 * 1024
# Arrow counts bytes in 32 bits.
_LONGEST = 2**31 - 1

_SCHEMA = pa.schema([("number", pa.int64()), ("stretch", pa.int32()), ("line", pa.string_view())])
# A view of a text: its length, its first four bytes, the buffer it lies in and its place there.
_VIEW = np.dtype([("length", "<i4"), ("prefix", "<u4"), ("buffer", "<i4"), ("offset", "<i4")])

# What stands around the one span, or the one record, of a line.
_SPAN_OPENING_END = f'"scope":{{"name":"{encoding.SCOPE_NAME}"}},"spans":['.encode()
_RECORD_OPENING = b"".join(encoding.record_line("", {}, {}, 0).partition(b'"logRecords":[')[:2])
_CLOSING = b"]}]}]}\n"
# The tracer's LM calls are its client spans. That is said after the ids and the name; where the name
# is so long that it is not found there, or says this, Python reads the line.
_OF_CLIENT = b'","kind":3,"startTimeUnixNano":"'
_NAME_AT = len(f'{{"traceId":"{"0" * 32}","spanId":"{"0" * 16}",')
# A time in nanoseconds has nineteen digits, from 2001 to 2286; a record of another time is left to Python.
_EVENT_NAME_AT = len('{"timeUnixNano":"1700000000000000000",')
# From either of these places on, so much is looked at.
_HEAD_BYTES = 128


class PlainLines:
    """Whole lines, and which of them are the tracer's own.

    Args:
        texts: the lines, a text for each stretch; a stretch is of one segment.

    Attributes:
        calls: the spans of LM calls without what stands around them, as a table of `number`, `stretch`
            and `line`. Lines are numbered over all stretches, stretches from 0.
        spans: the other spans, as `calls` has them.
        resources: of the spans of each stretch, as JSON; one process has one.

    Example:
        >>> PlainLines([b"{}"]).spans.num_rows
        0
    """

    def __init__(self, texts: Sequence[bytes | memoryview]) -> None:
        if sum(map(len, texts)) <= _PIECE_BYTES:
            self._stretches = list(map(_Stretch, texts))
        else:
            with ThreadPoolExecutor() as threads:  # nearly all of it is numpy's and Arrow's work
                self._stretches = list(threads.map(_Stretch, texts))
        self._firsts = np.array([0, *accumulate(stretch.n_lines for stretch in self._stretches)], np.int64)
        self._is_other = np.ones(self._firsts[-1], dtype=bool)
        self.resources = [stretch.resource for stretch in self._stretches]
        self.calls = self._table([stretch.calls for stretch in self._stretches])
        self.spans = self._table([stretch.spans for stretch in self._stretches])

    def records(self, event_name: str) -> Any:
        """The records of one name, as `calls` has the spans."""
        return self._table([stretch.records(event_name) for stretch in self._stretches])

    def take(self, rows: Any) -> list[tuple[int, int]]:
        """Of the lines whose `number` these rows have the plain ones are read: from each stretch, how many."""
        numbers = rows["number"].to_numpy()[rows["is_plain"].to_numpy()]
        self._is_other[numbers] = False
        stretches = np.searchsorted(self._firsts, numbers, side="right") - 1
        return [(stretch, int(count)) for stretch, count in enumerate(np.bincount(stretches))]

    def others(self, stretch: int) -> list[tuple[int, bytes]]:
        """The lines of a stretch that were not taken, with their offsets in it."""
        first, end = self._firsts[stretch : stretch + 2]
        return self._stretches[stretch].lines(np.flatnonzero(self._is_other[first:end]))

    def _table(self, parts: Sequence[tuple[Any, Any]]) -> Any:
        """The line numbers and views of every stretch as one table."""
        numbers = np.concatenate([first + numbers for first, (numbers, _) in zip(self._firsts, parts, strict=False)])
        views = np.concatenate([views for _, views in parts])
        views["buffer"] = np.repeat(np.arange(len(parts)), [len(views) for _, views in parts])
        buffers = [None, pa.py_buffer(views), *(stretch.buffer for stretch in self._stretches)]
        lines = pa.Array.from_buffers(pa.string_view(), len(views), buffers)
        rows = pa.table([pa.array(numbers), pa.array(views["buffer"]), lines], schema=_SCHEMA)
        return pa.Table.from_batches(rows.to_batches(max_chunksize=_BATCH_LINES), schema=_SCHEMA)


class _Stretch:
    """The lines of one text.

    Attributes:
        buffer: the text.
        n_lines: how many there are; they are numbered from 0.
        calls: the numbers of those that should be LM calls, and views of their spans.
        spans: the same of the other spans.
        resource: of all these, as JSON.
    """

    def __init__(self, text: bytes | memoryview) -> None:
        self.buffer = pa.py_buffer(text)
        self._text = np.frombuffer(text, np.uint8)
        self._offsets = _offsets(self._text)
        self.n_lines = len(self._offsets) - 1
        lines = self._lines()
        is_closed = pc.ends_with(lines, _CLOSING)
        try:
            lines.cast(pa.string())
        except pa.ArrowInvalid:  # a text for DuckDB is UTF-8: it gets the lines that are
            is_closed = pc.and_(is_closed, pa.array(map(_is_utf8, lines), pa.bool_()))
        opening, self.resource = _span_opening(lines)
        spans = self._numbers(lines, opening, is_closed)
        views = self._views(spans, opening)
        is_call = _is(pc.match_substring, self._heads(views, _NAME_AT), _OF_CLIENT)
        self.calls = spans[is_call], views[is_call]
        self.spans = spans[~is_call], views[~is_call]
        self._records = self._numbers(lines, _RECORD_OPENING, is_closed)
        self._record_views = self._views(self._records, _RECORD_OPENING)
        self._event_names = self._heads(self._record_views, _EVENT_NAME_AT)

    def records(self, event_name: str) -> tuple[Any, Any]:
        """The numbers of the records of one name, and views of them."""
        is_such = _is(pc.starts_with, self._event_names, f'"eventName":"{event_name}",'.encode())
        return self._records[is_such], self._record_views[is_such]

    def _views(self, numbers: Any, opening: bytes) -> Any:
        """Views of what stands between the opening and the end of those lines."""
        views = np.zeros(len(numbers), dtype=_VIEW)
        views["offset"] = self._offsets[numbers] + len(opening)
        views["length"] = self._offsets[numbers + 1] - len(_CLOSING) - views["offset"]
        prefixes = self._text[views["offset"][:, np.newaxis] + np.arange(4)]
        views["prefix"] = np.ascontiguousarray(prefixes).view("<u4").reshape(-1)
        return views

    def lines(self, numbers: Any) -> list[tuple[int, bytes]]:
        """Those lines, without their ends, and where they begin; no empty ones."""
        found = []
        for number in numbers:
            first, end = self._offsets[number : number + 2]
            if line := self._text[first:end].tobytes().rstrip(b"\n"):
                found.append((int(first), line))
        return found

    def _lines(self) -> Any:
        """The lines, ends included; none where Arrow can't count that far."""
        if len(self._text) > _LONGEST:
            return pa.array([], pa.binary())
        offsets = pa.py_buffer(self._offsets.astype(np.int32))
        return pa.BinaryArray.from_buffers(pa.binary(), self.n_lines, [None, offsets, self.buffer])

    def _numbers(self, lines: Any, opening: bytes, is_closed: Any) -> Any:
        """The numbers of the lines that begin so, and are closed, with something in between."""
        numbers = np.flatnonzero(pc.and_(pc.starts_with(lines, opening), is_closed))
        lengths = self._offsets[numbers + 1] - self._offsets[numbers] - len(opening) - len(_CLOSING)
        # A shorter text would have to stand in its view itself.
        return numbers[lengths > _VIEW.itemsize]

    def _heads(self, views: Any, first: int) -> Any:
        """The `_HEAD_BYTES` from `first` on of each view, where it has so many."""
        heads = views.copy()
        heads["offset"] += np.minimum(first, views["length"])
        heads["length"] = np.clip(views["length"] - first, 0, _HEAD_BYTES)
        # Twelve bytes and less would have to stand in the view itself; nothing is said in so few. Nor are
        # the first four in it right any more, but a cast does not look at them.
        heads["length"][heads["length"] <= _VIEW.itemsize] = 0
        buffers = [None, pa.py_buffer(heads), self.buffer]
        return pa.Array.from_buffers(pa.binary_view(), len(heads), buffers).cast(pa.binary())


def _is(condition: Any, texts: Any, words: bytes) -> Any:
    return condition(texts, words).to_numpy(zero_copy_only=False)


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
