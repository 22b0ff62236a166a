"""A store as Parquet files, for whatever reads those: one folder a view, in it one for each run and day."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.errors import InvalidInput
from tracetune.files import written_whole
from tracetune.grouping.conditions import check_condition
from tracetune.grouping.connections import quoted

if TYPE_CHECKING:
    import duckdb

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


def write_parquet(connection: duckdb.DuckDBPyConnection, folder: Path, where: str | None) -> dict[str, int]:
    """Write rollouts, with their calls, spans and scores, as `<view>/run=…/day=…/*.parquet`.

    Args:
        connection: open for reading.
        folder: new, or empty.
        where: a condition over the columns of `rollouts`; None takes them all.

    Returns:
        How many rows each view has there.

    Raises:
        InvalidInput: if the folder holds something.
        QueryError: if the condition is none.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(f"{folder} is not an empty folder; name a new one for the Parquet files")
    condition = "true" if where is None else where
    check_condition(connection, condition, "rollouts")
    selected = f"SELECT rollout_id, run, started_at::DATE AS day FROM rollouts WHERE (\n{condition}\n)"  # noqa: S608  a condition in SQL is what is asked for
    connection.execute(f"CREATE OR REPLACE TEMP TABLE selected AS {selected}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(folder) as unfinished:
        unfinished.mkdir()
        counts = _write(connection, unfinished)
    connection.execute("DROP TABLE selected")
    return counts


def _write(connection: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, int]:
    """Write the rollouts that are in the table `selected`."""
    counts = {}
    for view, source in _SOURCES.items():
        rows = f"SELECT rows.*, run, day FROM ({source}) AS rows JOIN selected USING (rollout_id)"  # noqa: S608  our own names
        answer = connection.execute(
            f"COPY ({rows}) TO {quoted(folder / view)} (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (run, day))"
        ).fetchone()
        assert answer is not None
        counts[view] = int(answer[0])
    return counts
