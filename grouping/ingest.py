"""From the spool into the store: every pending line once, in transactions of bounded size.

How far each segment was read is remembered in the transaction of its rows, so a process
that is killed anywhere leaves either both or neither. A closed segment is deleted after
its last commit. Rows are added first, and what the store had already is taken out again
(`duplicates`); then the `sql/derive_*.sql` files settle the columns that need more than
their own span (dense invocations, rewards, which completion a call was), for the
rollouts that the new rows touch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from tracetune.grouping import schema, segments
from tracetune.grouping.duplicates import remove_repeated, remove_repeated_calls
from tracetune.grouping.otlp import Decoded, decode
from tracetune.grouping.parts import parts_of
from tracetune.grouping.plain import insert_plain
from tracetune.grouping.records import arrow_table
from tracetune.grouping.rows import CALLS, FLAG, OTHER_RECORDS, RECORDS, SPANS
from tracetune.types import Sampling

if TYPE_CHECKING:
    import duckdb

CHUNK_BYTES = 256 * 1024 * 1024
# Each transaction looks once through what the store holds already, so it should bring in a good deal.
TRANSACTION_BYTES = 512 * 1024 * 1024
_DERIVED = (
    "derive_shadowed.sql",
    "derive_modules.sql",
    "derive_invocations.sql",
    "derive_cached.sql",
    "derive_tokens.sql",
    "derive_rollouts.sql",
)
_RECORD_TABLES = (*(record.table for record in RECORDS.values()), OTHER_RECORDS.table)
_COUNTED = ("spans", "records", "rejected", "repeated", "conflicting")


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


def is_pending(connection: duckdb.DuckDBPyConnection, folder: Path) -> bool:
    """Whether the spool holds anything that the store does not."""
    return bool(segments.unread(segments.segments(folder), _bytes_ingested(connection)))


def ingest(
    connection: duckdb.DuckDBPyConnection,
    folder: Path,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    transaction_bytes: int = TRANSACTION_BYTES,
) -> IngestReport:
    """Take everything new from a spool into the store that the connection has open for writing.

    DuckDB lets one process at a time hold the file, so two that ingest take turns.
    """
    found = segments.segments(folder)
    read = _bytes_ingested(connection)
    pending = segments.unread(found, read)
    live_pids = {segment.pid for segment in found if segment.live and segment.pid is not None}
    counts: Counter[str] = Counter()
    transaction = _Transaction(connection, folder)
    for segment in pending:
        for chunk in segments.chunks(segment, read.get(segment.name, 0), chunk_bytes):
            if transaction.n_bytes >= transaction_bytes:
                counts += transaction.commit(live_pids)
                transaction = _Transaction(connection, folder)
            transaction.add(chunk)
        transaction.finished.append(segment)
    counts += transaction.commit(live_pids)
    return IngestReport(**counts, segments=len(pending))


class _Transaction:
    """What is taken in together.

    Attributes:
        n_bytes: of the chunks so far.
        finished: the segments that have been read whole when this is committed.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self.n_bytes = 0
        self.finished: list[segments.Segment] = []
        self._connection = connection
        self._folder = folder
        self._last: dict[str, int] = {}
        # For each chunk: its segment, where it ends, and how many rows each table got of it.
        self._stretches: list[tuple[str, int, Counter[str]]] = []

    def add(self, chunk: segments.Chunk) -> None:
        """Read one chunk into the tables."""
        self._begin()
        try:
            others, inserted = insert_plain(self._connection, chunk.text, chunk.start)
            for decoded, tables in _tables(others):
                if decoded.rejected:
                    name = chunk.segment.name
                    segments.set_aside(self._folder, [(name, *rejected) for rejected in decoded.rejected])
                    inserted["rejected"] += len(decoded.rejected)
                for table, rows in tables.items():
                    _insert(self._connection, table, rows)
                    inserted[table] += len(rows)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._stretches.append((chunk.segment.name, chunk.end, inserted))
        self.n_bytes += chunk.end - chunk.start

    def commit(self, live_pids: set[int]) -> Counter[str]:
        """Settle what was read, and commit it; gives the counts of an `IngestReport`."""
        counts: Counter[str] = Counter()
        done = [segment for segment in self.finished if not segment.live]
        # A writer that is gone leaves rollouts interrupted, even if it wrote nothing more.
        if self._stretches or done:
            self._begin()
            try:
                counts = self._settle(live_pids)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
        for segment in done:
            segments.remove(segment)
        return counts

    def _begin(self) -> None:
        if not self._last:
            self._connection.execute("BEGIN")
            self._last = _last_rows(self._connection)

    def _settle(self, live_pids: set[int]) -> Counter[str]:
        total: Counter[str] = Counter()
        by_chunk = [Counter(rejected=inserted["rejected"]) for _, _, inserted in self._stretches]
        for table in ("spans", *_RECORD_TABLES):
            inserted = [rows[table] for _, _, rows in self._stretches]
            if any(inserted):
                repeated, conflicting = remove_repeated(self._connection, table, self._last[table], inserted)
                counted = "spans" if table == "spans" else "records"
                for chunk, added, again, differing in zip(by_chunk, inserted, repeated, conflicting, strict=True):
                    chunk += Counter({counted: added - again, "repeated": again, "conflicting": differing})
        remove_repeated_calls(self._connection, self._last["call_rows"])
        _derive(self._connection, self._last, live_pids)
        for (segment, end, _), counts in zip(self._stretches, by_chunk, strict=True):
            _remember(self._connection, segment, end, counts)
            total += counts
        return total


def _remember(connection: duckdb.DuckDBPyConnection, segment: str, end: int, counts: Counter[str]) -> None:
    connection.execute(
        """
        INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (name) DO UPDATE SET
            bytes_ingested = excluded.bytes_ingested, spans = spans + excluded.spans,
            records = records + excluded.records, rejected = rejected + excluded.rejected,
            repeated = repeated + excluded.repeated, conflicting = conflicting + excluded.conflicting
        """,
        [segment, end, *(counts[name] for name in _COUNTED)],
    )


def _last_rows(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The number of the last row of each table: what is added later comes after it."""
    each = (
        f"SELECT '{table}', coalesce(max(rowid), -1) FROM {table}"  # noqa: S608  our own names
        for table in ("spans", "call_rows", *_RECORD_TABLES)
    )
    return dict(connection.execute(" UNION ALL ".join(each)).fetchall())


def _tables(lines: Sequence[tuple[int, bytes]]) -> list[tuple[Decoded, dict[str, Any]]]:
    """Rows and Arrow tables of the lines; a line with a value of the wrong type ends up alone, and is set aside."""
    if not lines:
        return []
    decoded = decode(lines)
    try:
        return [(decoded, _arrow(decoded))]
    except (pa.ArrowException, OverflowError, TypeError) as error:
        if len(lines) > 1:
            middle = len(lines) // 2
            return _tables(lines[:middle]) + _tables(lines[middle:])
        (offset, line), reason = lines[0], f"a value of the wrong type: {error}"
        if parts := parts_of(orjson.loads(line)):
            return _tables([(offset, part) for part in parts])
        return [(Decoded(rejected=[(offset, line, reason)]), {})]


def _arrow(decoded: Decoded) -> dict[str, Any]:
    tables = {"spans": arrow_table(SPANS, decoded.spans), "call_rows": arrow_table(CALLS, decoded.calls)}
    for record in (*RECORDS.values(), OTHER_RECORDS):
        if rows := decoded.records.get(record.table):
            tables[record.table] = arrow_table(record.schema, rows)
    if "completions" in tables:
        tables["completions"] = _with_policy_flags(tables["completions"])
    return {name: table for name, table in tables.items() if len(table)}


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: Any) -> None:
    connection.register("new_rows", rows)
    # A batch's members are rows of their own.
    columns = ", ".join(column for column in rows.schema.names if column != "members")
    derived = ", md5_number(record_id) AS completion_key" if table == "completions" else ""
    connection.execute(f"INSERT INTO {table} BY NAME SELECT {columns}{derived} FROM new_rows")  # noqa: S608  our own names
    if table == "batches":
        connection.execute(schema.script("insert_batch_members.sql"))
    connection.unregister("new_rows")


def _derive(connection: duckdb.DuckDBPyConnection, last: dict[str, int], live_pids: set[int]) -> None:
    for table, row in last.items():
        connection.execute(f"SET VARIABLE last_{table} = {row}")
    connection.register("live_pids", pa.table({"pid": pa.array(sorted(live_pids), type=pa.int64())}))
    connection.execute(schema.script("derive_evaluations.sql"))
    connection.execute(schema.script("derive_touched.sql"))
    for name in _DERIVED:
        connection.execute(schema.script(name))
    connection.execute("DROP TABLE touched")
    connection.unregister("live_pids")


def _with_policy_flags(completions: Any) -> Any:
    prompts, tokens = completions["prompt_token_ids"], completions["completion_token_ids"]
    exact = pa.compute.and_(prompts.is_valid(), tokens.is_valid())
    sampled = pa.array([_is_on_policy(text) for text in completions["sampling"].to_pylist()], type=FLAG)
    return completions.append_column("exact", exact).append_column("on_policy", pa.compute.and_(exact, sampled))


@lru_cache(maxsize=4096)
def _is_on_policy(sampling: str | None) -> bool:
    fields = orjson.loads(sampling) if sampling else {}
    known = {name: value for name, value in fields.items() if name in Sampling.model_fields}
    return Sampling.model_validate(known).on_policy


def _bytes_ingested(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    return dict(connection.execute("SELECT name, bytes_ingested FROM segments").fetchall())
