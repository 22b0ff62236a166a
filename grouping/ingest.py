"""From the spool into the store: every pending line once, in one transaction.

What was read of each segment is remembered in the same transaction as its rows, so a
process that is killed anywhere leaves either both or neither. A closed segment is
deleted after the commit. Columns that need more than their own span (dense invocations,
rewards, which completion a call was) are settled by the `sql/derive_*.sql` files, for
the rollouts that the new rows touch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from tracetune.grouping import schema, segments
from tracetune.grouping.otlp import Decoded, decode
from tracetune.grouping.plain import PLAIN_TABLES, decode_plain
from tracetune.grouping.records import arrow_table
from tracetune.grouping.rows import CALLS, FLAG, OTHER_RECORDS, RECORDS, SPANS
from tracetune.types import Sampling

if TYPE_CHECKING:
    import duckdb

CHUNK_BYTES = 64 * 1024 * 1024
_DERIVED = (
    "derive_shadowed.sql",
    "derive_modules.sql",
    "derive_invocations.sql",
    "derive_cached.sql",
    "derive_tokens.sql",
    "derive_evaluations.sql",
    "derive_rollouts.sql",
)


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


@dataclass(slots=True)
class _Touched:
    """Ids of whatever the new rows say something about."""

    rollout_ids: set[str] = field(default_factory=set)
    call_ids: set[str] = field(default_factory=set)
    response_ids: set[str] = field(default_factory=set)
    superseded_runs: set[str] = field(default_factory=set)


def is_pending(connection: duckdb.DuckDBPyConnection, folder: Path) -> bool:
    """Whether the spool holds anything that the store does not."""
    return bool(segments.unread(segments.segments(folder), _bytes_ingested(connection)))


def ingest(connection: duckdb.DuckDBPyConnection, folder: Path, *, chunk_bytes: int = CHUNK_BYTES) -> IngestReport:
    """Take everything new from a spool into the store that the connection has open for writing.

    DuckDB lets one process at a time hold the file, so two that ingest take turns.
    """
    found = segments.segments(folder)
    pending = segments.unread(found, _bytes_ingested(connection))
    if not pending:
        return IngestReport()
    counts: Counter[str] = Counter()
    connection.execute("BEGIN")
    try:
        touched = _Touched()
        for segment in pending:
            counts += _ingest_segment(connection, folder, segment, touched, chunk_bytes)
        _derive(connection, touched, {segment.pid for segment in found if segment.live and segment.pid is not None})
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    for segment in pending:
        if not segment.live:
            segments.remove(segment)
    return IngestReport(**counts, segments=len(pending))


def _ingest_segment(
    connection: duckdb.DuckDBPyConnection, folder: Path, segment: segments.Segment, touched: _Touched, chunk_bytes: int
) -> Counter[str]:
    counts: Counter[str] = Counter()
    start = end = _bytes_ingested(connection).get(segment.name, 0)
    for chunk in segments.chunks(segment, start, chunk_bytes):
        end = chunk.end
        others = decode_plain(connection, chunk.text, chunk.start)
        for table, columns in PLAIN_TABLES.items():
            counts += _insert(connection, table, f"plain_{table}", columns)
        _note_plain(connection, touched)
        for decoded, tables in _tables(others):
            if decoded.rejected:
                segments.set_aside(folder, [(segment.name, *rejected) for rejected in decoded.rejected])
                counts["rejected"] += len(decoded.rejected)
            for name, table in tables.items():
                counts += _insert_table(connection, name, table)
            _note(decoded, touched)
    connection.execute(
        """
        INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (name) DO UPDATE SET
            bytes_ingested = excluded.bytes_ingested, spans = spans + excluded.spans,
            records = records + excluded.records, rejected = rejected + excluded.rejected,
            repeated = repeated + excluded.repeated, conflicting = conflicting + excluded.conflicting
        """,
        [segment.name, end, *(counts[name] for name in ("spans", "records", "rejected", "repeated", "conflicting"))],
    )
    return counts


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
        return [(Decoded(rejected=[(offset, line, reason)]), {})]


def _arrow(decoded: Decoded) -> dict[str, Any]:
    tables = {"spans": arrow_table(SPANS, decoded.spans), "call_rows": arrow_table(CALLS, decoded.calls)}
    for record in (*RECORDS.values(), OTHER_RECORDS):
        if rows := decoded.records.get(record.table):
            tables[record.table] = arrow_table(record.schema, rows)
    if "completions" in tables:
        tables["completions"] = _with_policy_flags(tables["completions"])
    return {name: table for name, table in tables.items() if len(table)}


def _insert_table(connection: duckdb.DuckDBPyConnection, name: str, table: Any) -> Counter[str]:
    connection.register("new_rows", table)
    # A batch's members are rows of their own.
    counts = _insert(connection, name, "new_rows", [column for column in table.schema.names if column != "members"])
    if name == "batches":
        connection.execute(schema.script("insert_batch_members.sql"))
    connection.unregister("new_rows")
    return counts


def _insert(connection: duckdb.DuckDBPyConnection, table: str, source: str, columns: Sequence[str]) -> Counter[str]:
    """Insert the rows of `source` that the table does not hold; a call is there once even if its span is not."""
    ids = {"spans": "trace_id, span_id", "call_rows": "call_id"}.get(table, "record_id")
    names = ", ".join(columns)
    derived = ", md5_number(record_id) AS completion_key" if table == "completions" else ""
    rows, new_ids = _one(
        connection,
        f"""
        SELECT (SELECT count(*) FROM {source}),
               (SELECT count(*) FROM (SELECT DISTINCT {ids} FROM {source}) ANTI JOIN {table} USING ({ids}))
        """,  # noqa: S608  our own names
    )
    if new_ids < rows and table == "call_rows":
        source = f"(SELECT DISTINCT ON (call_id) * FROM {source} ANTI JOIN call_rows USING (call_id) ORDER BY ALL)"  # noqa: S608
    elif new_ids < rows:
        source = f"(SELECT {names} FROM {source} EXCEPT SELECT {names} FROM {table})"  # noqa: S608
    (inserted,) = _one(connection, f"INSERT INTO {table} BY NAME SELECT {names}{derived} FROM {source}")  # noqa: S608
    if table == "call_rows":  # counted as spans
        return Counter()
    counted = "spans" if table == "spans" else "records"
    return Counter({counted: inserted, "repeated": rows - inserted, "conflicting": inserted - new_ids})


def _note_plain(connection: duckdb.DuckDBPyConnection, touched: _Touched) -> None:
    ids = connection.execute(schema.script("decode_touched.sql")).fetchall()
    touched.rollout_ids.update(rollout_id for rollout_id, _ in ids)
    touched.call_ids.update(call_id for _, call_id in ids)


def _note(decoded: Decoded, touched: _Touched) -> None:
    rollout = SPANS.get_field_index("rollout_id")
    touched.rollout_ids.update(row[rollout] for row in decoded.spans)
    for record in RECORDS.values():
        names = record.schema.names
        for column, ids in (
            ("rollout_id", touched.rollout_ids),
            ("call_id", touched.call_ids),
            ("response_id", touched.response_ids),
        ):
            if column in names:
                ids.update(row[names.index(column)] for row in decoded.records.get(record.table, ()))
    touched.superseded_runs.update(row[2] for row in decoded.records.get("supersedes", ()))


def _derive(connection: duckdb.DuckDBPyConnection, touched: _Touched, live_pids: set[int]) -> None:
    ids = {
        "new_rollout_ids": touched.rollout_ids,
        "new_call_ids": touched.call_ids,
        "new_response_ids": touched.response_ids,
        "new_superseded_runs": touched.superseded_runs,
    }
    for name, values in ids.items():
        connection.register(name, pa.table({"id": pa.array(sorted(values - {None}), type=pa.string())}))
    connection.register("live_pids", pa.table({"pid": pa.array(sorted(live_pids), type=pa.int64())}))
    connection.execute(schema.script("derive_touched.sql"))
    for name in _DERIVED:
        connection.execute(schema.script(name))
    connection.execute("DROP TABLE touched")
    for name in (*ids, "live_pids"):
        connection.unregister(name)


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


def _one(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row
