"""The quick way into the store for the tracer's own lines: DuckDB reads them itself.

Nearly every line is one span of ours whose attributes all have a column and whose
messages are plain text, or a record that every rollout has. DuckDB reads those on every
core, several times faster than Python can, and hands them over as Arrow in batches of a
row group: so each is written as it is, whatever segments its lines came from. Whatever is
not plain, `otlp.decode` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow.compute as pc

from tracetune.grouping.columns import RECORDS, SPANS
from tracetune.grouping.connections import ROW_GROUP_ROWS
from tracetune.grouping.ingest.fast_lines import PlainLines
from tracetune.grouping.ingest.fast_records import PLAIN_RECORDS, records_sql
from tracetune.grouping.ingest.fast_spans import attributes_of, calls_sql, spans_sql
from tracetune.grouping.scripts import script
from tracetune.tracer import names

# The same text in all rows of a stretch is not copied into each as they are read.
_SELECTED = {"resource": "getvariable('resources')[stretch + 1]::VARCHAR AS resource"}
_COLUMNS = {"spans": SPANS.names, **{record.table: record.schema.names for record in RECORDS.values()}}


@dataclass(frozen=True, slots=True)
class PlainRows:
    """What was read of the lines of one kind.

    Attributes:
        table: the table of the rows.
        rows: in Arrow, `number`, of the line; the columns, of spans with the `stretch` in place of the resource;
            and `is_plain`, whether they are right.
        is_lm: whether they are LM calls, and so make rows of `call_rows` too.
    """

    table: str
    rows: Any
    is_lm: bool = False


def read_plain(reader: duckdb.DuckDBPyConnection, lines: PlainLines) -> Iterator[PlainRows]:
    """Read the lines of each kind that DuckDB reads.

    Args:
        reader: not in a transaction, which a line that is no JSON would abort; it needs no table.
        lines: those of one transaction of the store.
    """
    # A span of ours has a kind: where no line of a sample says one, none is plain.
    if names.KIND in (attributes := attributes_of(lines.calls)):
        yield PlainRows("spans", _read(reader, lines.calls, calls_sql(attributes)), is_lm=True)
    if names.KIND in (attributes := attributes_of(lines.spans)):
        yield PlainRows("spans", _read(reader, lines.spans, spans_sql(attributes)))
    for event_name in PLAIN_RECORDS:
        if len(records := lines.records(event_name)):
            yield PlainRows(RECORDS[event_name].table, _read(reader, records, records_sql(event_name)))


def insert_plain(connection: duckdb.DuckDBPyConnection, read: PlainRows, resources: Sequence[str | None]) -> None:
    """Insert the rows that are plain.

    Args:
        connection: in the transaction.
        read: the rows.
        resources: of the spans of each stretch, as `PlainLines` has them.
    """
    is_plain = read.rows["is_plain"]
    # Nearly always all are; to leave some out Arrow copies the rest.
    rows = read.rows if pc.all(is_plain).as_py() else read.rows.filter(is_plain)
    connection.register("plain_rows", rows)
    connection.execute("SET VARIABLE resources = ?", [resources])
    columns = ", ".join(_SELECTED.get(column, column) for column in _COLUMNS[read.table])
    connection.execute(f"INSERT INTO {read.table} BY NAME SELECT {columns} FROM plain_rows")  # noqa: S608  our own names
    if read.is_lm:
        connection.execute(script("ingest", "insert_plain_calls"))
    connection.unregister("plain_rows")


def _read(reader: duckdb.DuckDBPyConnection, lines: Any, select: str) -> Any:
    reader.register("lines", lines)
    try:
        # To `try` costs a copy of everything, and few spools have a line that is no JSON.
        read = _arrow(reader, select.replace("try(", "("))
    except duckdb.InvalidInputException:
        read = _arrow(reader, select)
    reader.unregister("lines")
    return read


def _arrow(reader: duckdb.DuckDBPyConnection, select: str) -> Any:
    # Batches of a row group DuckDB writes side by side, each as it is. And it makes Arrow of a
    # relation on every core; of what `execute` gives it does not. All rows: a condition here
    # would be pushed down to the JSON, which would then be read twice.
    return reader.sql(select).to_arrow_table(ROW_GROUP_ROWS)
