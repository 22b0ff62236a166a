"""From aligned rows to the values that trainers take.

`group_batch` aligns once, into a temporary table with one row a group, and reads three
things from it: the groups, their members with all that a trainer needs of each call, and
everything that was left out. Only calls that are kept have their tokens and texts read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import duckdb
import pyarrow as pa

from tracetune.errors import QueryError
from tracetune.grouping.groups.align import (
    ALIGNED_GROUPS,
    answers_sql,
    calls_sql,
    group_key,
    groups_sql,
    sql_text,
    with_stages,
)
from tracetune.grouping.groups.credit import call_credits
from tracetune.grouping.groups.members import members_of
from tracetune.grouping.groups.tool_calls import with_tool_calls
from tracetune.grouping.queries.conditions import check_condition
from tracetune.grouping.queries.results import read_table
from tracetune.types import Group, GroupBatch, Grouping, LeftOut


def group_batch(connection: duckdb.DuckDBPyConnection, grouping: Grouping, where: str | None = None) -> GroupBatch:
    """The groups of the calls that a condition selects, and what was left out of them.

    Args:
        connection: sees the relations `calls`, `rollouts` and `scores`.
        grouping: how calls are aligned, and what each is worth.
        where: a SQL condition over the columns of `calls`; None takes them all.

    Raises:
        QueryError: if the condition is not one; the message has DuckDB's reason.
        InvalidReward: if a credit function gives what is not a finite number.

    Example:
        >>> group_batch(connection, Grouping(), "run = 'try-1' AND step = 3")  # doctest: +SKIP
    """
    with aligned(connection, grouping, where) as alignment:
        keys = alignment.rows("FROM group_keys ORDER BY place").to_pylist()
        members = with_tool_calls(
            members_of(alignment.rows(sql_text("group_details"))),
            lambda: alignment.rows(sql_text("group_tool_calls")),
        )
        singletons = alignment.rows(sql_text("group_singletons")).column("group_id").to_pylist()
        left_out = LeftOutRows(alignment.rows(sql_text("group_left_out")))
    columns = group_key(grouping)
    groups = []
    start = 0
    for row in keys:
        end = start + row["n_members"]
        groups.append(Group({column: row[column] for column in columns}, tuple(members[start:end])))
        start = end
    return GroupBatch(tuple(groups), left_out, tuple(singletons), grouping.unit)


class Alignment:
    """Groups in a temporary table, and the stages that read it; lives as long as `aligned` does."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, grouping: Grouping, where: str | None) -> None:
        self._connection = connection
        self._stages = answers_sql(grouping, where)

    def rows(self, select: str) -> pa.Table:
        """What a SELECT over the stages and the aligned groups gives."""
        return read_table(self._connection, with_stages(self._stages, select))


@contextmanager
def aligned(connection: duckdb.DuckDBPyConnection, grouping: Grouping, where: str | None = None) -> Iterator[Alignment]:
    """The calls that a condition selects, aligned.

    Raises:
        QueryError: if the condition is not one.
        InvalidReward: if a credit function gives what is not a finite number.
    """
    calls = calls_sql(grouping, where)
    statement = with_stages(calls | groups_sql(grouping), f"FROM {ALIGNED_GROUPS}")
    try:
        if where is not None:
            check_condition(connection, where, "calls")
        if callable(grouping.credit):
            connection.register("call_credits", call_credits(connection, grouping, where))
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {ALIGNED_GROUPS} AS {statement}")
        yield Alignment(connection, grouping, where)
    except duckdb.Error as error:
        condition = "" if where is None else f" with where={where!r}"
        reason = str(error).partition("\n\nLINE ")[0]  # without DuckDB's picture of the statement
        raise QueryError(f"calls could not be grouped{condition}: {reason}") from error
    finally:
        connection.execute(f"DROP TABLE IF EXISTS temp.{ALIGNED_GROUPS}")
        connection.unregister("call_credits")


class LeftOutRows(Sequence[LeftOut]):
    """What was left out, kept in columns until it is asked for: there may be a million of them."""

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @overload
    def __getitem__(self, index: int) -> LeftOut: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LeftOut]: ...

    def __getitem__(self, index: int | slice) -> LeftOut | Sequence[LeftOut]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row = self._rows.slice(index % len(self), 1)
        return LeftOut(**row.to_pylist()[0])

    def __iter__(self) -> Iterator[LeftOut]:
        for batch in self._rows.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                yield LeftOut(**row)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"<{len(self)} left out>"
