"""Commands that look into a store and change nothing in it: `show`, `sql` and `groups`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracetune.commands.app import WAIT_SECONDS, StorePath, Wait, app, open_store, say
from tracetune.errors import InvalidInput
from tracetune.files import written_whole
from tracetune.terminal import write_csv, write_json, write_table

if TYPE_CHECKING:
    from tracetune.grouping import Result

_OVERVIEW = {
    "rollouts": """
        SELECT run, split, program, count(DISTINCT step) AS steps, count(*) AS rollouts,
               count(*) FILTER (status = 'ok') AS ok,
               count(*) FILTER (status = 'error') AS error,
               count(*) FILTER (status = 'format_error') AS format_error,
               count(*) FILTER (status = 'timeout') AS timeout,
               count(*) FILTER (status = 'interrupted') AS interrupted,
               count(*) FILTER (superseded) AS superseded,
               count(*) FILTER (reward IS NULL) AS unscored,
               avg(reward) AS reward
        FROM rollouts
        GROUP BY run, split, program
        ORDER BY run, split, program
    """,
    "calls": """
        SELECT run, split, module, count(*) AS calls, count(DISTINCT invocation) AS invocations,
               count(*) FILTER (exact) AS exact,
               count(*) FILTER (NOT exact) AS not_exact,
               count(*) FILTER (status != 'ok') AS failed
        FROM calls
        GROUP BY run, split, module
        ORDER BY run, split, module
    """,
    "scores": """
        SELECT name, source, count(*) AS scores, avg(value) AS mean
        FROM scores
        GROUP BY name, source
        ORDER BY name, source
    """,
    "batches": """
        SELECT run, count(DISTINCT record_id) AS batches, count(DISTINCT step) AS steps, count(group_id) AS members
        FROM batches LEFT JOIN batch_members USING (record_id)
        GROUP BY run
        ORDER BY run
    """,
    "lines of the spool": """
        SELECT coalesce(sum(spans), 0) AS spans, coalesce(sum(records), 0) AS records,
               coalesce(sum(rejected), 0) AS rejected, coalesce(sum(repeated), 0) AS repeated,
               coalesce(sum(conflicting), 0) AS conflicting
        FROM segments
    """,
}

_GROUP_COLUMNS = """
    run, split, step, example_id, module, key, invocation, turn, size, reward_mean, reward_std,
    coalesce(reward_std, 0) = 0 AS constant
"""
_GROUP_ORDER = "run, split, step, example_id, module, key, invocation, turn"


@app.command(epilog="Example: tracetune show demo.duckdb")
def show(store: StorePath, wait: Wait = WAIT_SECONDS) -> None:
    """Give an overview: rollouts, calls, scores, batches."""
    opened = open_store(store, wait)
    for place, (title, query) in enumerate(_OVERVIEW.items()):
        columns, rows = _rows(opened.sql(query))
        print(title if place == 0 else f"\n{title}")
        write_table(columns, rows, sys.stdout)


@app.command(epilog='Example: tracetune sql demo.duckdb "FROM rollouts LIMIT 3"')
def sql(
    store: StorePath,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to ask, in DuckDB's SQL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array, one object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a Parquet file.")] = None,
    max_seconds: Annotated[float, typer.Option(metavar="S", help="How long the query may take.")] = 60,
    max_rows: Annotated[int, typer.Option(metavar="N", help="How many rows the answer may have.")] = 1_000_000,
    max_size: Annotated[str, typer.Option(metavar="SIZE", help="How large the answer may be.")] = "256MB",
    wait: Wait = WAIT_SECONDS,
) -> None:
    """Ask a store a question; nothing in it is changed.

    The views are rollouts, calls, groups and group_members. The query is one SELECT. It
    runs in a process of its own, within limits.
    """
    from tracetune.grouping import QueryLimits

    if as_json + as_csv + (parquet is not None) > 1:
        raise InvalidInput("--json, --csv and --parquet are three answers to one question; choose one of them")
    limits = QueryLimits(max_seconds, max_rows, max_size)
    answer = open_store(store, wait).sql(query, isolated=True, limits=limits)
    if parquet is not None:
        _write_parquet(answer, parquet, store)
        return
    write = write_json if as_json else write_csv if as_csv else write_table
    write(*_rows(answer), sys.stdout)


@app.command(epilog="Example: tracetune groups demo.duckdb --where \"module = 'hop'\"")
def groups(
    store: StorePath,
    where: Annotated[str, typer.Option(metavar="SQL", help="A condition on the columns of the view groups.")] = "true",
    limit: Annotated[int, typer.Option(min=1, help="How many groups to show.")] = 20,
    wait: Wait = WAIT_SECONDS,
) -> None:
    """Show groups and how far their rewards are spread.

    A group is the calls that are compared with each other. A constant one has members
    with equal rewards, which teach nothing.
    """
    # The line end keeps a comment at the end of the condition from swallowing the parenthesis.
    query = f"""
        SELECT {_GROUP_COLUMNS}, count(*) OVER () AS total FROM groups WHERE ({where}\n)
        ORDER BY {_GROUP_ORDER} LIMIT {limit}
    """  # noqa: S608  a condition in SQL is what is asked for
    columns, rows = _rows(open_store(store, wait).sql(query, isolated=True))
    total = rows[0][-1] if rows else 0
    write_table(columns[:-1], [row[:-1] for row in rows], sys.stdout)
    if total > len(rows):
        say(f"{len(rows)} of {total} groups are shown; --limit {total} shows them all")


def _rows(answer: Result) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names of an answer's columns, and its rows."""
    import pyarrow as pa

    table = answer.arrow()
    # Python has no time in nanoseconds: as text they keep their digits.
    columns = [column.cast(pa.string()) if column.type == pa.timestamp("ns") else column for column in table.columns]
    return table.column_names, list(zip(*(column.to_pylist() for column in columns), strict=True))


def _write_parquet(answer: Result, file: Path, store: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    from tracetune.tracer import store_path

    if store_path(file) == store_path(store):
        raise InvalidInput(f"{file} is the store itself; name another file for --parquet")
    try:
        with written_whole(file) as unfinished, unfinished.open("wb") as content:
            parquet.write_table(answer.arrow(), content)
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(f"{file} cannot be written ({error}); name another file for --parquet") from error
    say(f"{len(answer)} rows are in {file}")
