"""The quick way into the store for the records that every rollout has: DuckDB reads them itself.

A rollout's start, its end and its scores are as many as its calls, and their fields are
texts and numbers. Completions and what a run writes once a step go through `records`.
"""

from __future__ import annotations

from functools import cache

from tracetune.grouping.columns import REAL, RECORDS, TEXT, WHOLE, Column
from tracetune.grouping.scripts import template
from tracetune.tracer import names

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


@cache
def records_sql(event_name: str) -> str:
    """The SELECT that reads `lines` as records of one of `PLAIN_RECORDS`: the columns of its table, and `is_plain`."""
    known = RECORDS[event_name]
    fields = {column.field or column.name: column for column in known.columns}
    # Where a field's type is found, counted from 1.
    places = {field: place for place, field in enumerate(fields, 1)}
    shapes = [f'"{field}": "{"JSON" if column.json else _SHAPES[column.type]}"' for field, column in fields.items()]
    values = {field: _value(field, column, places[field]) for field, column in fields.items()}
    return template("ingest", "decode_records").substitute(
        table=known.table,
        event=event_name,
        record_id=names.RECORD_ID,
        shape="{" + ", ".join(shapes) + "}",
        paths=[f"/{field}" for field in fields],
        columns=",\n       ".join(f"{values[field]} AS {column.name}" for field, column in fields.items()),
        rest=", ".join(_entry(name) for name in _SCOPE if name.removeprefix(_SCOPE_PREFIX) not in fields) or "NULL",
        n_known=" + ".join(f"list_contains(names, '{name}')::INTEGER" for name in (names.RECORD_ID, *_SCOPE)),
        n_taken=" + ".join(f"(types[{place}] IS NOT NULL)::INTEGER" for place in places.values()),
        is_plain="\n           AND ".join(
            _is_plain(field, column, places[field], values[field]) for field, column in fields.items()
        ),
    )


def _value(field: str, column: Column, place: int) -> str:
    body = f"nullif(fields.{field}, 'null')" if column.json else f"fields.{field}"
    if not _is_scope(field):
        return body
    # What the body says counts, even null.
    return f"CASE WHEN types[{place}] IS NULL THEN {_attribute(field, column)} ELSE {body} END"


def _is_plain(field: str, column: Column, place: int, value: str) -> str:
    conditions = [] if column.json else [f"coalesce(types[{place}] IN {_JSON_TYPES[column.type]}, true)"]
    if _is_scope(field):
        conditions.append(
            f"(NOT list_contains(names, '{_SCOPE_PREFIX}{field}') OR {_attribute(field, column)} IS NOT NULL)"
        )
    if column.required:
        conditions.append(f"({value}) IS NOT NULL")
    return " AND ".join(conditions) or "true"


def _entry(name: str) -> str:
    place = f"list_position(names, '{name}')"
    value = f"coalesce(to_json(texts[{place}])::VARCHAR, wholes[{place}]::VARCHAR)"
    return f"""'"{name.removeprefix(_SCOPE_PREFIX)}":' || {value}"""


def _is_scope(field: str) -> bool:
    return f"{_SCOPE_PREFIX}{field}" in _SCOPE


def _attribute(field: str, column: Column) -> str:
    return f"{'wholes' if column.type is WHOLE else 'texts'}[list_position(names, '{_SCOPE_PREFIX}{field}')]"
