"""How long a query may take, and how large its answer may be."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb

from tracetune.errors import InvalidInput, QueryLimitReached
from tracetune.grouping.connections import bytes_of
from tracetune.grouping.queries.results import read_batches

if TYPE_CHECKING:
    import pyarrow as pa

# DuckDB computes this many rows at a time.
_BATCH_ROWS = 2048


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """Bounds of one query; a query that passes one of them is stopped.

    Args:
        seconds: how long it may take.
        rows: how many rows its answer may have.
        size: how large its answer may be in memory, as DuckDB writes a size: "256MB".

    Raises:
        InvalidInput: if a bound is not positive, or the size is none.

    Example:
        >>> QueryLimits(seconds=5).rows
        1000000
    """

    seconds: float = 60.0
    rows: int = 1_000_000
    size: str = "256MB"

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("rows", self.rows)):
            if not value > 0:
                raise InvalidInput(f"{name} of QueryLimits must be more than 0, not {value}")
        bytes_of(self.size, "size")


def limited_answer(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    params: Sequence[Any] | Mapping[str, Any] | None,
    limits: QueryLimits,
) -> pa.Table:
    """The answer to a query, read batch by batch, so that no more than the limits is ever held.

    Raises:
        QueryLimitReached: if the query takes too long, or its answer is too large.
        duckdb.Error: if DuckDB refuses the query.
    """
    import pyarrow as pa

    largest = bytes_of(limits.size)
    rows = size = 0
    batches = []
    with _interrupted_after(connection, limits.seconds):
        try:
            reader = read_batches(connection, query, params, _BATCH_ROWS)
            for batch in reader:
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if rows > limits.rows:
                    raise QueryLimitReached(_reached(f"has more than {limits.rows} rows", "add a LIMIT", "rows"))
                if size > largest:
                    raise QueryLimitReached(_reached(f"is larger than {limits.size}", "ask for less", "size"))
                batches.append(batch)
        except OSError as error:  # Arrow's wrapping of an error of DuckDB's
            raise duckdb.Error(str(error)) from error
    return pa.Table.from_batches(batches, schema=reader.schema)


def time_is_up(seconds: float) -> QueryLimitReached:
    """What is said of a query that takes too long."""
    return QueryLimitReached(
        f"the query took longer than {seconds:g} s; ask for less (WHERE, LIMIT), or give it longer: "
        "limits=QueryLimits(seconds=…), --max-seconds in the command line"
    )


def _reached(what: str, instead: str, name: str) -> str:
    return (
        f"the query's answer {what}; {instead}, or allow more: limits=QueryLimits({name}=…), --max-{name} in the "
        "command line"
    )


@contextmanager
def _interrupted_after(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    is_late = threading.Event()

    def interrupt() -> None:
        is_late.set()
        connection.interrupt()

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except duckdb.Error as error:
        if is_late.is_set():
            raise time_is_up(seconds) from error
        raise
    finally:
        timer.cancel()
