"""The quick way into the store for the records that every rollout has: DuckDB reads them itself.

A rollout's start, its end and its scores are as many as its calls, and their fields are
texts and numbers. Completions and what a run writes once a step go through `records`.
"""

from __future__ import annotations

from functools import cache
from string import Template
from typing import TYPE_CHECKING

from tracetune.grouping import schema
from tracetune.grouping.rows import REAL, RECORDS, TEXT, WHOLE, Column
from tracetune.tracer import names

if TYPE_CHECKING:
    import duckdb

PLAIN_RECORDS = (names.RECORD_ROLLOUT, names.RECORD_ROLLOUT_CLOSED, names.RECORD_SCORE)

_SCOPE = (names.RUN, names.SPLIT, names.STEP, names.ROLLOUT_ID, names.EXAMPLE_ID, names.POLICY_VERSION)
_SCOPE_PREFIX = "tracetune."
_SHAPES = {TEXT: "VARCHAR", WHOLE: "BIGINT", REAL: "DOUBLE"}
# What JSON calls the values that a column takes as they are.
_JSON_TYPES = {
    TEXT: ("VARCHAR", "NULL"),
    WHOLE: ("BIGINT", "UBIGINT", "NULL"),
    REAL: ("DOUBLE", "BIGINT", "UBIGINT", "NULL"),
}
_FIELDS = {column.field or column.name: column for event in PLAIN_RECORDS for column in RECORDS[event].columns}
# Where a field's type is found, counted from 1.
_PLACES = {field: place for place, field in enumerate(_FIELDS, 1)}


def decode_plain_records(connection: duckdb.DuckDBPyConnection) -> None:
    """Read the plain ones among `lines` into a temporary `plain_<table>` for each of `PLAIN_RECORDS`."""
    connection.execute(_records_sql())
    for event_name in PLAIN_RECORDS:
        connection.execute(_table_sql(event_name))


@cache
def _records_sql() -> str:
    shapes = [f'"{field}": "{"JSON" if column.json else _SHAPES[column.type]}"' for field, column in _FIELDS.items()]
    return Template(schema.script("decode_records.sql")).substitute(
        shape="{" + ", ".join(shapes) + "}", paths=[f"/{field}" for field in _FIELDS]
    )


@cache
def _table_sql(event_name: str) -> str:
    known = RECORDS[event_name]
    fields = {column.field or column.name: column for column in known.columns}
    return Template(schema.script("decode_record_table.sql")).substitute(
        table=known.table,
        event=event_name,
        record_id=names.RECORD_ID,
        columns=",\n       ".join(f"{_value(field, column)} AS {column.name}" for field, column in fields.items()),
        scope=[names.RECORD_ID, *_SCOPE],
        taken=(names.RECORD_ID, *(f"{_SCOPE_PREFIX}{field}" for field in fields)),
        n_taken=" + ".join(f"(types[{_PLACES[field]}] IS NOT NULL)::INTEGER" for field in fields),
        is_plain="\n  AND ".join(_is_plain(field, column) for field, column in fields.items()),
    )


def _value(field: str, column: Column) -> str:
    body = f"nullif(fields.{field}, 'null')" if column.json else f"fields.{field}"
    if not _is_scope(field):
        return body
    # What the body says counts, even null.
    return f"CASE WHEN types[{_PLACES[field]}] IS NULL THEN {_attribute(field, column)} ELSE {body} END"


def _is_plain(field: str, column: Column) -> str:
    conditions = [] if column.json else [f"coalesce(types[{_PLACES[field]}] IN {_JSON_TYPES[column.type]}, true)"]
    if _is_scope(field):
        conditions.append(
            f"(NOT list_contains(names, '{_SCOPE_PREFIX}{field}') OR {_attribute(field, column)} IS NOT NULL)"
        )
    if column.required:
        conditions.append(f"({_value(field, column)}) IS NOT NULL")
    return " AND ".join(conditions) or "true"


def _is_scope(field: str) -> bool:
    return f"{_SCOPE_PREFIX}{field}" in _SCOPE


def _attribute(field: str, column: Column) -> str:
    return f"{'wholes' if column.type is WHOLE else 'texts'}[list_position(names, '{_SCOPE_PREFIX}{field}')]"
