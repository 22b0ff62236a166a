"""Objects in files: JSON lines, a JSON array, one JSON object, CSV or Parquet, told by the first bytes.

JSON lines, CSV and Parquet are read piece by piece, whatever their size; an array, or an
object that stands on several lines, is read whole.
"""

from __future__ import annotations

import codecs
import csv
import io
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tracetune.adapters.formats import Refused
from tracetune.adapters.packing import skip_blank, unpacked

# Of one line, or of a file that must be read whole.
MOST_BYTES = 512 * 1024 * 1024
_BATCH_ROWS = 1024
# A spreadsheet's cell may hold a whole prompt.
_FIELD_CHARACTERS = 64 * 1024 * 1024

Placed = tuple[str, dict[str, Any]]


def objects(file: BinaryIO, *, tables: bool = False) -> Iterator[Placed | Refused]:
    r"""Each object of a file with its place, and what is none.

    Args:
        file: read from where it stands to its end, gzip and Zstandard unpacked.
        tables: a text that does not begin as JSON is CSV; else it is refused.

    Example:
        >>> list(objects(io.BytesIO(b'{"a": 1}\n[2]\n')))
        [('line 1', {'a': 1}), Refused(place='line 2', reason='an object belongs here, not list', count=1)]
    """
    whole = unpacked(file)
    try:
        # Blank lines may be more than what is looked at.
        before = skip_blank(whole)
        start = whole.peek(256)[:256].removeprefix(codecs.BOM_UTF8).lstrip()
        if start.startswith(b"PAR1"):
            yield from _rows_of_parquet(whole)
        elif start.startswith(b"["):
            yield from _whole(whole.read(MOST_BYTES + 1))
        elif start.startswith(b"{"):
            yield from _lines(whole, before)
        elif tables and start:
            yield from _rows_of_csv(whole)
        elif start:
            yield Refused("line 1", "it is neither JSON lines nor a JSON array" + ("" if tables else " nor Parquet"))
    except (EOFError, OSError, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        yield Refused("the rest of it", f"it cannot be read: {error}")


def _lines(file: io.BufferedReader, before: int) -> Iterator[Placed | Refused]:
    number, was_blank = before, False
    while text := file.readline(MOST_BYTES):
        number += 1
        text = text.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").strip()
        if not text:
            # Of many blank lines not each is looked at; after one alone that would cost more than it spares.
            number += skip_blank(file) if was_blank else 0
            was_blank = True
            continue
        was_blank = False
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            if number == before + 1 and not text.endswith(b"}"):  # an object on many lines
                yield from _whole(text + b"\n" + file.read(MOST_BYTES + 1))
                return
            yield Refused(f"line {number}", f"not JSON: {error}")
            continue
        yield _checked(f"line {number}", value)


def _whole(text: bytes) -> Iterator[Placed | Refused]:
    if len(text) > MOST_BYTES:
        yield Refused("the file", f"as one JSON value it is longer than {MOST_BYTES} bytes; write it as JSON lines")
        return
    try:
        value = orjson.loads(text.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        yield Refused("the file", f"not JSON: {error}")
        return
    if isinstance(value, dict):
        yield "item 1", value
        return
    for number, item in enumerate(value, 1):
        yield _checked(f"item {number}", item)


def _checked(place: str, value: Any) -> Placed | Refused:
    return (
        (place, value)
        if isinstance(value, dict)
        else Refused(place, f"an object belongs here, not {type(value).__name__}")
    )


def _rows_of_csv(file: io.BufferedReader) -> Iterator[Placed | Refused]:
    csv.field_size_limit(_FIELD_CHARACTERS)
    rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    for number, row in enumerate(rows, 1):
        if None in row:
            yield Refused(f"row {number}", f"it has more cells than the header has names, which are {rows.fieldnames}")
        else:
            yield f"row {number}", {name: value for name, value in row.items() if value not in (None, "")}


def _rows_of_parquet(file: io.BufferedReader) -> Iterator[Placed]:
    # Parquet is read from its end, and what comes by a pipe has none yet.
    with tempfile.TemporaryFile() as copied:
        while block := file.read(1024 * 1024):
            copied.write(block)
        copied.seek(0)
        number = 0
        for batch in pq.ParquetFile(copied).iter_batches(batch_size=_BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", {name: value for name, value in row.items() if value is not None}
