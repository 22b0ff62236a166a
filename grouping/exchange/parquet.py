"""A store as Parquet files, for whatever reads those: one folder a view, in it one for each run and day."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.errors import InvalidInput
from tracetune.files import make_folder, written_whole
from tracetune.grouping.private_files import quoted
from tracetune.grouping.queries.conditions import check_condition
from tracetune.grouping.queries.results import read_table

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

# The day is that of the rollout, so that what belongs together lies together.
_SOURCES = {
    "rollouts": "SELECT * EXCLUDE (run) FROM rollouts",
    "calls": "SELECT * EXCLUDE (run) FROM calls",
    "spans": """
        SELECT * EXCLUDE (run) REPLACE (started_at::TIMESTAMP AS started_at, ended_at::TIMESTAMP AS ended_at)
        FROM spans
    """,
    # A score of a call need not name its rollout.
    "scores": """
        SELECT scores.* REPLACE (
            coalesce(scores.rollout_id, calls.rollout_id) AS rollout_id, recorded_at::TIMESTAMP AS recorded_at
        )
        FROM scores LEFT JOIN calls USING (call_id)
    """,
}


def selected_rollouts(connection: duckdb.DuckDBPyConnection, where: str | None) -> pa.Table:
    """The id, run and day of each rollout that a condition selects.

    Args:
        connection: open for reading, and closed off: the condition is somebody's SQL.
        where: a condition over the columns of `rollouts`; None takes them all.

    Raises:
        QueryError: if the condition is none.
    """
    condition = "true" if where is None else where
    check_condition(connection, condition, "rollouts")
    selected = f"SELECT rollout_id, run, started_at::DATE AS day FROM rollouts WHERE (\n{condition}\n)"  # noqa: S608  a condition in SQL is what is asked for
    return read_table(connection, selected)


def write_parquet(connection: duckdb.DuckDBPyConnection, folder: Path, selected: pa.Table) -> dict[str, int]:
    """Write rollouts, with their calls, spans and scores, as `<view>/run=…/day=…/*.parquet`.

    Args:
        connection: open for reading, not closed off, as it writes the files.
        folder: new, or empty.
        selected: the rollouts, as `selected_rollouts` gives them.

    Returns:
        How many rows each view has there.

    Raises:
        InvalidInput: if the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"{folder} is not an empty folder; name a new one for the Parquet files")
    connection.register("selected", selected)
    make_folder(folder.absolute().parent)
    with written_whole(folder) as unfinished:
        make_folder(unfinished)
        counts = _write(connection, unfinished)
    connection.unregister("selected")
    return counts


def _write(connection: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, int]:
    """Write the rollouts that are in the table `selected`."""
    counts: dict[str, int] = {}
    for view, source in _SOURCES.items():
        rows = f"SELECT rows.*, run, day FROM ({source}) AS rows JOIN selected USING (rollout_id)"  # noqa: S608  our own names
        [(counts[view],)] = connection.execute(
            f"COPY ({rows}) TO {quoted(folder / view)} (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (run, day))"
        ).fetchall()
    return counts
