"""From the spool into the store: every pending line once, in transactions of bounded size.

How far each segment was read is remembered in the transaction of its rows, so a process
that is killed anywhere leaves either both or neither. A transaction takes in the chunks
of many segments at once: the row groups of a table are then filled, and written on every
core. Of much, the next part is read while this one is inserted. A closed segment is
deleted after its last commit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tracetune.grouping.ingest import segments
from tracetune.grouping.ingest.fast_path import PlainRows
from tracetune.grouping.ingest.transaction import Transaction
from tracetune.grouping.ingest.writers import Writers

if TYPE_CHECKING:
    import duckdb

_Item = TypeVar("_Item")

CHUNK_BYTES = 64 * 1024 * 1024
# Each transaction looks once through what the store holds already, and ends its tables' last row groups where
# they are: it should bring in a good deal. It is held in memory, and what of the next one has been read.
TRANSACTION_BYTES = 768 * 1024 * 1024
# Many small segments are a transaction too: each costs a little in Python, whatever its size.
_TRANSACTION_CHUNKS = 1000


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one ingest did.

    Attributes:
        spans: spans added.
        records: records added (rollout starts and ends, completions, scores and so on).
        rejected: lines that could not be read, now in the spool's `rejected.jsonl`.
        repeated: spans and records that the store already held, left as they were.
        conflicting: spans and records whose id the store held with another content; both are kept.
        segments: spool files read from.
    """

    spans: int = 0
    records: int = 0
    rejected: int = 0
    repeated: int = 0
    conflicting: int = 0
    segments: int = 0


def is_pending(connection: duckdb.DuckDBPyConnection, found: Sequence[segments.Segment]) -> bool:
    """Whether the segments hold anything that the store does not."""
    return bool(segments.unread(found, _bytes_ingested(connection)))


def ingest(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    transaction_bytes: int = TRANSACTION_BYTES,
    memory_bytes: int | None = None,
) -> IngestReport:
    """Take everything new from a spool into the store that the connection has open for writing.

    DuckDB lets one process at a time hold the file, so two that ingest take turns.

    Args:
        connection: to the store.
        folder: the spool.
        chunk_bytes: of a segment, about so many are decoded together.
        transaction_bytes: and so many are committed together, less where there is little memory.
        memory_bytes: what DuckDB may use.
    """
    if memory_bytes is not None:
        transaction_bytes = min(transaction_bytes, memory_bytes // 4)
    found = segments.segments(folder)
    read = _bytes_ingested(connection)
    pending = segments.unread(found, read)
    writers = Writers.of(found)
    counts: Counter[str] = Counter()
    transactions = _transactions(connection, folder, pending, read, chunk_bytes, transaction_bytes)
    n_bytes = sum(segment.size - read.get(segment.name, 0) for segment in pending)
    with closing(connection.cursor()) as reader:
        steps = _read(reader, transactions)
        # What is read at once is not worth a thread.
        with closing(steps if n_bytes <= chunk_bytes else _ahead(steps)) as steps:
            for transaction, rows in steps:
                if rows is not None:
                    transaction.insert(rows)
                else:
                    counts += transaction.commit(writers)
    return IngestReport(**counts, segments=len(pending))


def _transactions(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    pending: Sequence[segments.Segment],
    read: Mapping[str, int],
    chunk_bytes: int,
    transaction_bytes: int,
) -> Iterator[Transaction]:
    """What is pending, divided into transactions."""
    transaction = Transaction(connection, folder)
    for segment in pending:
        for chunk in segments.chunks(segment, read.get(segment.name, 0), chunk_bytes):
            if transaction.n_bytes >= transaction_bytes or len(transaction.chunks) >= _TRANSACTION_CHUNKS:
                yield transaction
                transaction = Transaction(connection, folder)
            transaction.chunks.append(chunk)
        transaction.finished.append(segment)
    yield transaction


def _read(
    reader: duckdb.DuckDBPyConnection, transactions: Iterator[Transaction]
) -> Generator[tuple[Transaction, PlainRows | None], None, None]:
    """What DuckDB reads of each transaction, kind by kind, and None after the last."""
    reader.execute("SET enable_progress_bar = false")
    for transaction in transactions:
        for rows in transaction.read(reader):
            yield transaction, rows
        yield transaction, None


def _ahead(items: Iterator[_Item]) -> Generator[_Item, None, None]:
    """The same, each item made while the one before is still worked on."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        upcoming = worker.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = worker.submit(next, items, None)
            yield item


def _bytes_ingested(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    return dict(connection.execute("SELECT name, bytes_ingested FROM segments").fetchall())
