"""One log record of the spool as one row of its table.

A record's body is a JSON object; the fields that `rows.RECORDS` names become columns,
taken from the record's attributes where the body lacks them, and the others are kept in
`rest`. Records with a name that is not known go to `other_records` whole.
"""

from __future__ import annotations

import math
from typing import Any

import orjson
import pyarrow as pa

from tracetune.grouping.columns import OTHER_RECORDS, REAL, RECORDS, TEXT, Column

_SCOPE_PREFIX = "tracetune."


def record_row(
    event_name: str | None,
    record_id: str,
    recorded_at: int,
    attributes: dict[str, Any],
    body: Any,
    span: tuple[str | None, str | None] = (None, None),
) -> tuple[str, tuple[Any, ...]]:
    """The table that a record belongs to, and its row there.

    Args:
        event_name: what the record is.
        record_id: its own id.
        recorded_at: when, in nanoseconds.
        attributes: beside its body.
        body: what it says.
        span: the trace and the span that it was recorded in.

    Raises:
        ValueError: if a field it needs is missing or of another type.
    """
    known = RECORDS.get(event_name or "")
    if known is None:
        text = body if isinstance(body, str) else orjson.dumps(body).decode()
        kept = orjson.dumps(attributes).decode() if attributes else None
        return OTHER_RECORDS.table, (record_id, recorded_at, event_name, *span, text, kept)
    fields = orjson.loads(body) if isinstance(body, str) else body
    if not isinstance(fields, dict):
        raise ValueError(  # noqa: TRY004  a line to set aside, not a mistake in a call
            f"the body of a {event_name} record is a JSON object, not {type(fields).__name__}"
        )
    rest = dict(fields)
    for name, value in attributes.items():
        rest.setdefault(name.removeprefix(_SCOPE_PREFIX), value)
    row = [_take(column, rest, event_name) for column in known.columns]
    left = orjson.dumps(rest).decode() if rest else None
    return known.table, (record_id, recorded_at, *row, left)


def _take(column: Column, fields: dict[str, Any], event_name: str | None) -> Any:
    name = column.field or column.name
    value = fields.pop(name, None)
    if value is None:
        if column.required:
            raise ValueError(f"a {event_name} record without {name!r}")
        return None
    if column.json:
        return orjson.dumps(value).decode()
    if column.type is REAL:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name!r} of a {event_name} record is not a finite number: {value!r:.40}")
        return float(value)
    if column.type is TEXT and not isinstance(value, str):
        raise ValueError(f"{name!r} of a {event_name} record is not a text: {value!r:.40}")
    return value


def arrow_table(schema: Any, rows: list[tuple[Any, ...]]) -> Any:
    """Rows as an Arrow table.

    Raises:
        pyarrow.ArrowException: if a value is not of its column's type.
    """
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    return pa.Table.from_arrays(
        [pa.array(column, type=declared.type) for column, declared in zip(columns, schema, strict=True)],
        schema=schema,
    )
