"""Rows that the store had already: found after they were added, because nearly always there are none.

New rows are those after the last row that a table had. Looking for their ids among the
others is one join for a whole transaction; only where that finds some are rows compared.
A row with the same content as an earlier one is taken out again; one with the same id and
another content stays, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from tracetune.grouping.columns import CALLS
from tracetune.grouping.scripts import template

if TYPE_CHECKING:
    import duckdb


def remove_repeated(
    connection: duckdb.DuckDBPyConnection, table: str, last: int, inserted: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Take new rows that were there before out of `spans` or a table of records.

    Args:
        connection: in the transaction that added the rows.
        table: its name.
        last: the number of the last row that it had.
        inserted: how many rows it got from each stretch of lines, in the order of the rows.

    Returns:
        For each stretch how many of its rows were taken out, and how many of those that
        stayed have the id of an earlier row.
    """
    ids = "trace_id, span_id" if table == "spans" else "record_id"
    none = [0] * len(inserted)
    if _new_ids(connection, table, ids, last) == sum(inserted):
        return none, none
    compared = connection.execute(
        template("ingest", "duplicates").substitute(table=table, ids=ids, last=last)
    ).fetchnumpy()
    rows = np.sort(compared["row"][compared["is_repeated"]])
    connection.register("repeated_rows", _column("row", rows))
    connection.execute(f"DELETE FROM {table} WHERE rowid IN (FROM repeated_rows)")  # noqa: S608  our own names
    connection.unregister("repeated_rows")
    is_conflicting = ~compared["is_repeated"] & compared["is_known"]
    return _by_stretch(compared["place"][compared["is_repeated"]], inserted), _by_stretch(
        compared["place"][is_conflicting], inserted
    )


def remove_repeated_calls(connection: duckdb.DuckDBPyConnection, last: int) -> None:
    """Leave each call once in `call_rows`: the one that was there before, else the first by its content."""
    (added,) = connection.execute("SELECT count(*) FROM call_rows WHERE rowid > ?", [last]).fetchall()[0]
    if _new_ids(connection, "call_rows", "call_id", last) < added:
        connection.execute(template("ingest", "duplicate_calls").substitute(columns=", ".join(CALLS.names), last=last))


def _new_ids(connection: duckdb.DuckDBPyConnection, table: str, ids: str, last: int) -> int:
    """How many ids the new rows have that no earlier row has; one too few, where two share a hash."""
    (count,) = connection.execute(
        f"""
        SELECT count(*)
        FROM (SELECT DISTINCT hash({ids}) AS id FROM {table} WHERE rowid > {last})
        ANTI JOIN (SELECT hash({ids}) AS id FROM {table} WHERE rowid <= {last}) USING (id)
        """  # noqa: S608  our own names
    ).fetchall()[0]
    return int(count)


def _by_stretch(places: Any, inserted: Sequence[int]) -> list[int]:
    """How many of the places, counted from 0 over all new rows, lie in each stretch."""
    ends = np.fromiter(accumulate(inserted), dtype=np.int64)
    found = np.searchsorted(ends, places, side="right")
    return [int(count) for count in np.bincount(found, minlength=len(inserted))]


def _column(name: str, values: Any) -> Any:
    import pyarrow as pa

    return pa.table({name: pa.array(values)})
