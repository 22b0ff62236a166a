"""What a query gave: a table in memory, in the form the reader likes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb

from tracetune.errors import MissingDependency

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

# DuckDB 1.5 reads the relation of a query with parameters row by row, 25 times slower than `execute`, and gives no
# relation for a statement that changes something. DuckDB 2 copies the rows of `execute` once more, and warns.
_READS_RELATIONS = int(duckdb.__version__.split(".")[0]) >= 2


def read_table(
    connection: duckdb.DuckDBPyConnection, query: str, params: Sequence[Any] | Mapping[str, Any] | None = None
) -> pa.Table:
    """The answer to a query as Arrow, by the fastest way of the DuckDB that is installed.

    Args:
        connection: where the query runs.
        query: one statement, or several: the last one's answer counts.
        params: values for `?` or `$name` in the query.

    Raises:
        duckdb.Error: if DuckDB refuses the query.

    Example:
        >>> read_table(duckdb.connect(), "SELECT ? AS one", [1]).to_pylist()
        [{'one': 1}]
    """
    if _READS_RELATIONS:
        return connection.sql(query, params=params).to_arrow_table()
    return connection.execute(query, params).to_arrow_table()


def read_batches(
    connection: duckdb.DuckDBPyConnection, query: str, params: Sequence[Any] | Mapping[str, Any] | None, rows: int
) -> pa.RecordBatchReader:
    """The answer to a query as Arrow, about so many rows at a time, as DuckDB computes them.

    Args:
        connection: where the query runs.
        query: one statement.
        params: values for `?` or `$name` in the query.
        rows: of a batch.

    Raises:
        duckdb.Error: if DuckDB refuses the query.
    """
    if _READS_RELATIONS:
        return connection.sql(query, params=params).to_arrow_reader(rows)
    return connection.execute(query, params).to_arrow_reader(rows)


class Result:
    """The rows of a query; they stay as they are whatever happens to the store.

    Example:
        >>> from tracetune.grouping import Store
        >>> Store("traces.duckdb").sql("SELECT 1 AS one, 'a' AS letter").rows()
        [{'one': 1, 'letter': 'a'}]
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        return f"<Result: {len(self)} rows of {', '.join(self.columns)}>"

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in order."""
        return list(self._table.column_names)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a row."""
        rows: list[dict[str, Any]] = self._table.to_pylist()
        return rows

    def arrow(self) -> pa.Table:
        """A `pyarrow.Table`."""
        return self._table

    def df(self) -> Any:  # pandas has no types of its own
        """A pandas data frame.

        Raises:
            MissingDependency: if pandas is not installed.
        """
        try:
            return self._table.to_pandas()
        except ModuleNotFoundError as error:
            raise MissingDependency("df() needs pandas; pip install pandas, or use rows() or arrow()") from error

    def pl(self) -> pl.DataFrame:
        """A polars data frame.

        Raises:
            MissingDependency: if polars is not installed.
        """
        try:
            import polars as pl
        except ModuleNotFoundError as error:
            raise MissingDependency("pl() needs polars; pip install polars, or use rows() or arrow()") from error
        frame = pl.from_arrow(self._table)
        assert isinstance(frame, pl.DataFrame)
        return frame
