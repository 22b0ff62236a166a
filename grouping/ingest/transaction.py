"""One transaction of ingest: the chunks that are taken in together, settled, and remembered.

Rows are added first, and what the store had already is taken out again (`duplicates`);
then the `sql/derive_*.sql` files settle the columns that need more than their own span
(dense invocations, rewards, which completion a call was), for the rollouts that the new
rows touch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from tracetune.grouping.columns import CALLS, FLAG, OTHER_RECORDS, RECORDS, SPANS
from tracetune.grouping.ingest import segments
from tracetune.grouping.ingest.documents import parts_of
from tracetune.grouping.ingest.duplicates import remove_repeated, remove_repeated_calls
from tracetune.grouping.ingest.fast_lines import PlainLines
from tracetune.grouping.ingest.fast_path import PlainRows, insert_plain, read_plain
from tracetune.grouping.ingest.logged_messages import join_logged_messages
from tracetune.grouping.ingest.otlp import Decoded, decode
from tracetune.grouping.ingest.records import arrow_table
from tracetune.grouping.ingest.writers import Writers
from tracetune.grouping.scripts import script
from tracetune.types import Sampling

if TYPE_CHECKING:
    import duckdb

_DERIVED = (
    "derive_shadowed",
    "derive_modules",
    "derive_invocations",
    "derive_cached",
    "derive_tokens",
    "derive_rollouts",
)
_RECORD_TABLES = (*(record.table for record in RECORDS.values()), OTHER_RECORDS.table)
_COUNTED = ("spans", "records", "rejected", "repeated", "conflicting")


class Transaction:
    """What is taken in together.

    Args:
        connection: has the store open for writing.
        folder: the spool, where lines that cannot be read are set aside.

    Attributes:
        chunks: what is taken in.
        finished: the segments that have been read whole when this is committed.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self.chunks: list[segments.Chunk] = []
        self.finished: list[segments.Segment] = []
        self._lines: PlainLines
        self._connection = connection
        self._folder = folder
        # The number of the last row that each table had: what is added later comes after it.
        self._last: dict[str, int] = {}
        # For each table, in the order of its new rows: from which chunk how many of them came.
        self._inserted: dict[str, list[tuple[int, int]]] = {}

    @property
    def n_bytes(self) -> int:
        """Of the chunks."""
        return sum(chunk.end - chunk.start for chunk in self.chunks)

    def read(self, reader: duckdb.DuckDBPyConnection) -> Iterator[PlainRows]:
        """What DuckDB reads of the chunks, kind by kind.

        Args:
            reader: a connection of its own, so that this may run beside the inserts of another transaction.
        """
        if self.chunks:
            self._lines = PlainLines([chunk.text for chunk in self.chunks])
            yield from read_plain(reader, self._lines)
            for chunk in self.chunks:
                chunk.let_go()

    def insert(self, read: PlainRows) -> None:
        """Insert what DuckDB read of the chunks."""
        with self._begun():
            insert_plain(self._connection, read, self._lines.resources)
            self._inserted.setdefault(read.table, []).extend(self._lines.take(read.rows))

    def commit(self, writers: Writers) -> Counter[str]:
        """Read what DuckDB did not, settle and commit; gives the counts of an `IngestReport`."""
        total: Counter[str] = Counter()
        done = [segment for segment in self.finished if segment.waits]
        # A writer that is gone leaves rollouts interrupted, even if it wrote nothing more.
        if self.chunks or done:
            with self._begun():
                by_chunk = [Counter[str]() for _ in self.chunks]
                self._insert_others(by_chunk)
                self._settle(by_chunk)
                _derive(self._connection, self._last, writers)
                for chunk, counts in zip(self.chunks, by_chunk, strict=True):
                    _remember(self._connection, chunk.segment.name, chunk.end, counts)
                    total += counts
            self._connection.execute("COMMIT")
            # Without a write-ahead log what is committed stands on the disk from here on; DuckDB has done it by now.
            self._connection.execute("CHECKPOINT")
        for segment in done:
            segments.release(segment)
        return total

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Within the transaction, which is rolled back where this fails."""
        is_first = not self._last
        if is_first:
            self._connection.execute("BEGIN")
        try:
            if is_first:
                self._last = _last_rows(self._connection)
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def _insert_others(self, by_chunk: Sequence[Counter[str]]) -> None:
        """Read what is left of the chunks into the tables."""
        for place, (chunk, counts) in enumerate(zip(self.chunks, by_chunk, strict=True)):
            others = [(chunk.start + offset, line) for offset, line in self._lines.others(place)]
            for decoded, tables in _tables(others):
                if decoded.rejected:
                    name = chunk.segment.name
                    segments.set_aside(self._folder, [(name, *rejected) for rejected in decoded.rejected])
                    counts["rejected"] += len(decoded.rejected)
                for table, rows in tables.items():
                    _insert(self._connection, table, rows)
                    self._inserted.setdefault(table, []).append((place, len(rows)))

    def _settle(self, by_chunk: Sequence[Counter[str]]) -> None:
        """Take out what the store had already, and count."""
        for table, inserted in self._inserted.items():
            if table == "call_rows":
                continue
            added = [rows for _, rows in inserted]
            repeated, conflicting = remove_repeated(self._connection, table, self._last[table], added)
            counted = "spans" if table == "spans" else "records"
            for (place, rows), again, differing in zip(inserted, repeated, conflicting, strict=True):
                by_chunk[place].update({counted: rows - again, "repeated": again, "conflicting": differing})
        remove_repeated_calls(self._connection, self._last["call_rows"])


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
        connection.execute(script("ingest", "insert_batch_members"))
    connection.unregister("new_rows")


def _derive(connection: duckdb.DuckDBPyConnection, last: dict[str, int], writers: Writers) -> None:
    for table, row in last.items():
        connection.execute(f"SET VARIABLE last_{table} = {row}")
    connection.execute(script("ingest", "derive_evaluations"))
    join_logged_messages(connection)
    connection.execute(script("ingest", "derive_touched"))
    writers.register(connection)
    for name in _DERIVED:
        connection.execute(script("ingest", name))
    connection.execute("DROP TABLE touched")
    connection.execute("DROP TABLE logged_messages")
    connection.unregister("live_pids")
    connection.unregister("live_processes")


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
