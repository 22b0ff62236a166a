"""Conditions in SQL that a caller gives: one expression over the columns of one view, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetune.errors import QueryError
from tracetune.grouping.queries.read_only import check_expression

if TYPE_CHECKING:
    import duckdb


def check_condition(connection: duckdb.DuckDBPyConnection, where: str, view: str) -> None:
    """Refuse what is not one condition over the columns of a view, before anything runs.

    Raises:
        QueryError: if the text is empty or not one expression, or calls a function that acts.
        duckdb.Error: if DuckDB refuses it.
    """
    if not where.strip():
        raise QueryError(f'where={where!r} is empty; pass one condition over {view}, or "true" for all its rows')
    try:
        check_expression(connection, where)
    except QueryError as error:
        raise QueryError(f"where={where!r} is not one condition over {view}: {error}") from error
    connection.execute(f"EXPLAIN SELECT 1 FROM {view} WHERE (\n{where}\n)")  # noqa: S608  a condition in SQL is what is asked for
