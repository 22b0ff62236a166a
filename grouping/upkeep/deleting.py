"""Taking rollouts out of a store, with everything that was recorded of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetune.grouping.queries.conditions import check_condition
from tracetune.grouping.scripts import script

if TYPE_CHECKING:
    import duckdb

# The columns of `rollouts`, of every trace: those that are no rollouts age as well.
_TRACES = "SELECT * EXCLUDE (is_rollout, first_at, pid) FROM rollout_rows"


def delete_rollouts(connection: duckdb.DuckDBPyConnection, where: str) -> int:
    """Delete the rollouts that a condition selects, in one transaction.

    Args:
        connection: open for writing.
        where: a condition over the columns of `rollouts`.

    Returns:
        How many rollouts, and other traces, were deleted.

    Raises:
        QueryError: if it is no condition.
    """
    check_condition(connection, where, "rollouts")
    connection.execute("BEGIN")
    try:
        selected = f"SELECT rollout_id FROM ({_TRACES}) AS rollouts WHERE (\n{where}\n)"  # noqa: S608  a condition in SQL is what is asked for
        connection.execute(f"CREATE OR REPLACE TEMP TABLE doomed AS {selected}")
        (count,) = connection.execute("SELECT count(*) FROM doomed").fetchall()[0]
        connection.execute(script("upkeep", "delete_rollouts"))
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return int(count)
