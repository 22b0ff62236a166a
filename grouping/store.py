"""The store: one DuckDB file, and the spool beside it that everything comes in by.

Every call opens the file, takes in what the spool holds by then, answers, and closes
it again, so what was recorded a moment ago is there and other processes have their turn.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from tracetune.errors import InvalidInput, QueryError, StoreError, StoreNotFound, UnknownId
from tracetune.grouping import schema
from tracetune.grouping.connections import bytes_of, connected, is_begun
from tracetune.grouping.exchange.add_rollouts import RolloutRow, write_rollouts
from tracetune.grouping.exchange.parquet import selected_rollouts, write_parquet
from tracetune.grouping.exchange.scores import score_rows
from tracetune.grouping.groups.batches import group_batch
from tracetune.grouping.groups.lint import LintReport, lint
from tracetune.grouping.ingest import pipeline as ingest
from tracetune.grouping.ingest import segments
from tracetune.grouping.ingest.pipeline import IngestReport
from tracetune.grouping.queries.conditions import check_condition
from tracetune.grouping.queries.isolation import isolated_answer
from tracetune.grouping.queries.limits import QueryLimits, limited_answer
from tracetune.grouping.queries.read_only import check_query
from tracetune.grouping.queries.refusals import reason_of
from tracetune.grouping.queries.results import Result, read_table
from tracetune.grouping.troubles import reason_in_a_line, remedy, told
from tracetune.grouping.upkeep.compacting import compact
from tracetune.grouping.upkeep.deleting import delete_rollouts
from tracetune.tracer import names, spool_folder, store_path
from tracetune.tracer.paths import check_path, warn_of_spool_at_link
from tracetune.tracer.spool import Spool
from tracetune.types import GroupBatch, Grouping

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


class Store:
    """The traces, completions and scores of programs, as SQL.

    Args:
        path: the DuckDB file; it is created where it is missing, its folder is not.
        wait: seconds to wait for another process that holds the file.
        read_only: refuse everything that would change what is recorded. Traces that wait
            in the spool are taken in all the same, where the file may be written.
        memory_limit: what DuckDB may use, as it writes it: "8GB". By default what the environment
            says as TRACETUNE_MEMORY_LIMIT, else 4GB. Beyond that it works on disk, in `<path>.tmp`.

    Raises:
        InvalidInput: if the memory limit is no size.
        StoreNotFound: if it is to be read only and there is neither a store nor a spool,
            or its folder is missing.
        StoreVersionError: if the file is not a tracetune store, or a newer one.
        StoreLocked: if another process holds it for longer than `wait`.

    Example:
        >>> store = Store("traces.duckdb")
        >>> ids = store.add_rollouts([{"example_id": "q1", "reward": 0.5, "calls": [{"module": "hop"}]}])
        >>> store.sql("SELECT module, avg(reward) AS reward FROM calls GROUP BY module").rows()
        [{'module': 'hop', 'reward': 0.5}]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        wait: float = 10.0,
        read_only: bool = False,
        memory_limit: str | None = None,
    ) -> None:
        self.path = store_path(path)
        self.read_only = read_only
        self._wait = wait
        self._memory_limit = memory_limit or os.environ.get("TRACETUNE_MEMORY_LIMIT", "4GB")
        self._memory_bytes = bytes_of(self._memory_limit)
        self._spool_folder = spool_folder(self.path)
        with told(self.path):
            if read_only and not self.path.exists() and not self._spool_folder.exists():
                raise StoreNotFound(f"there is no store at {path}; record into it first, or give another path")
            warn_of_spool_at_link(path)
            self._prepare()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def sql(
        self,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] | None = None,
        *,
        write: bool = False,
        isolated: bool = False,
        limits: QueryLimits | None = None,
    ) -> Result:
        """The answer to a query over the views and tables of `docs/store.md`, read into memory.

        Without `write=True` a query is one SELECT, or EXPLAIN of one, of functions that only
        compute. It sees the store alone: no other file is read or written.

        Args:
            query: one SQL statement; with `write=True` several are allowed, and the last
                one's answer counts.
            params: values for `?` or `$name` in the query.
            write: allow statements that change the store, and that read and write other files;
                you are on your own then.
            isolated: run the query in a process of its own, within limits. For queries of
                somebody else, or of a model: whatever they do to DuckDB, this process goes on.
            limits: how long the query may take, and how large its answer may be. By default
                an isolated query has `QueryLimits()`, and any other has none.

        Raises:
            QueryError: if DuckDB refuses the query, or it does more than read the store
                without `write=True`, or it ended the process that it was isolated in.
            QueryLimitReached: if it passes one of its limits.
            InvalidInput: if it is to write and to be isolated or limited.

        Example:
            >>> Store("empty.duckdb").sql("SELECT count(*) AS n FROM calls WHERE run = ?", ["try-1"]).rows()
            [{'n': 0}]
        """
        if write and (isolated or limits is not None):
            raise InvalidInput("a query that may write is neither isolated nor limited; leave out isolated and limits")
        if write:
            self._refuse_if_read_only("sql(write=True)")
        self.ingest()
        if isolated:
            return Result(
                isolated_answer(
                    self.path,
                    query,
                    params,
                    limits=limits or QueryLimits(),
                    wait=self._wait,
                    memory_limit=self._memory_limit,
                )
            )
        with self._connected(read_only=not write) as connection:
            try:
                if not write:
                    check_query(connection, query)
                elif not connection.extract_statements(query):
                    raise QueryError("the query is empty; give a statement, such as FROM rollouts")
                if limits is not None:
                    return Result(limited_answer(connection, query, params, limits))
                return Result(read_table(connection, query, params))
            except duckdb.Error as error:
                raise QueryError(reason_of(error)) from error

    def ingest(self) -> IngestReport:
        """Take in what the spool holds; every other method does this first.

        Raises:
            StoreError: if the file cannot be written; what was recorded stays in the spool.
        """
        with told(self._spool_folder, "read"):
            found = segments.segments(self._spool_folder)
        if not found or (self.read_only and not os.access(self.path, os.W_OK)):
            return IngestReport()
        # A closed segment is there until it is ingested; of a living one the store knows how much it has.
        if not any(segment.waits for segment in found):
            with self._connected(read_only=True) as connection:
                if not ingest.is_pending(connection, found):
                    return IngestReport()
        with self._connected(read_only=False) as connection:
            try:
                return ingest.ingest(connection, self._spool_folder, memory_bytes=self._memory_bytes)
            except (duckdb.Error, OSError) as error:
                raise StoreError(
                    f"{self.path} could not take in what was recorded ({reason_in_a_line(error)}); free the disk or "
                    f"mend the file: all of it waits in {self._spool_folder}"
                ) from error

    def add_rollouts(self, rollouts: Iterable[RolloutRow | Mapping[str, Any]]) -> list[str]:
        """Record rollouts that no tracer saw: of tests, or from logs of another kind.

        Returns:
            Their ids, in order.

        Raises:
            InvalidInput: if a row is not a rollout; none of them is recorded then.

        Example:
            >>> call = {"module": "hop", "completion": "carl"}
            >>> Store("added.duckdb").add_rollouts([{"id": "r1", "example_id": "q1", "reward": 1.0, "calls": [call]}])
            ['r1']
        """
        self._refuse_if_read_only("add_rollouts")
        with self._spool() as spool:
            ids = write_rollouts(spool, rollouts)
        self.ingest()
        return ids

    def reward(
        self,
        rollout_id: str | None,
        value: float,
        *,
        call_id: str | None = None,
        module: str | None = None,
        name: str = "reward",
        source: str = "user",
        feedback: str = "",
    ) -> None:
        """Score a rollout, one of its calls, or what one of its modules did.

        The latest score of name "reward" counts. A late score changes later groups,
        never a batch that was trained on.

        Raises:
            InvalidReward: if the value is not a finite number.
            UnknownId: if the store has no such rollout or call.
        """
        self.rewards(
            [
                {
                    "rollout_id": rollout_id,
                    "value": value,
                    "call_id": call_id,
                    "module": module,
                    "name": name,
                    "source": source,
                    "feedback": feedback,
                }
            ]
        )

    def rewards(self, table: Any) -> int:
        """Score many rollouts or calls at once, from a table.

        Args:
            table: rows (mappings), an Arrow table, or a pandas or polars frame, with
                `value` and `rollout_id` or `call_id`, and optionally `module`, `name`,
                `source` and `feedback`.

        Returns:
            How many scores were recorded.

        Raises:
            InvalidInput: if a column is missing or not known.
            InvalidReward: if a value is not a finite number; nothing is recorded then.
            UnknownId: if the store lacks one of the rollouts or calls; nothing is recorded then.
        """
        self._refuse_if_read_only("reward")
        scores = score_rows(table)
        self._check_ids("rollout", "rollouts", "rollout_id", {score["rollout_id"] for score in scores})
        self._check_ids("call", "calls", "call_id", {score["call_id"] for score in scores})
        with self._spool() as spool:
            for score in scores:
                spool.write_record(names.RECORD_SCORE, score)
        self.ingest()
        return len(scores)

    def groups(self, grouping: Grouping | None = None, where: str | None = None) -> GroupBatch:
        """The groups that a trainer learns from.

        Args:
            grouping: how calls are aligned; `Grouping()` where it is not given.
            where: a condition in SQL over the columns of `calls`.

        Raises:
            QueryError: if DuckDB refuses the condition.

        Example:
            >>> len(Store("empty.duckdb").groups(Grouping(size=8), where="run = 'try-1'"))
            0
        """
        self.ingest()
        with self._connected(read_only=True) as connection:
            return group_batch(connection, grouping or Grouping(), where)

    def lint(self, grouping: Grouping | None = None, where: str | None = None) -> LintReport:
        """How many calls of each module can be trained on, and what keeps the others from it.

        Args:
            grouping: how calls are aligned; `Grouping()` where it is not given.
            where: a condition in SQL over the columns of `calls`.

        Raises:
            QueryError: if DuckDB refuses the condition.

        Example:
            >>> store = Store("linted.duckdb")
            >>> ids = store.add_rollouts([{"example_id": "q1", "reward": 0.5, "calls": [{"module": "hop"}]}])
            >>> store.lint().modules[0].left_out
            {'no_completion': 1}
        """
        self.ingest()
        with self._connected(read_only=True) as connection:
            return lint(connection, grouping or Grouping(), where)

    def delete(self, where: str) -> int:
        """Delete rollouts with everything that was recorded of them: calls, spans, tokens and scores.

        Traces that are no rollouts go as well where the condition holds of them. What batches
        keep (ids and rewards of what was trained on) stays. The file grows no smaller by it:
        the space is used again, or given back by `compact`.

        Args:
            where: a condition in SQL over the columns of `rollouts`; "true" deletes all.

        Returns:
            How many were deleted.

        Raises:
            QueryError: if DuckDB refuses the condition.

        Example:
            >>> store = Store("deleted.duckdb")
            >>> ids = store.add_rollouts([{"run": run, "example_id": "q1", "calls": []} for run in ("try-1", "try-2")])
            >>> store.delete("run = 'try-1'")
            1
        """
        self._refuse_if_read_only("delete")
        self.ingest()
        with self._connected(read_only=False, closed_off=True) as connection:
            try:
                return delete_rollouts(connection, where)
            except duckdb.Error as error:
                raise QueryError(f"nothing was deleted with where={where!r}: {reason_of(error)}") from error

    def compact(self) -> int:
        """Write the file anew without the space of what was deleted; nothing else can use it meanwhile.

        The new file takes the old one's place at once when it is whole; the disk must have
        room for both.

        Returns:
            How many bytes smaller it is than before.

        Raises:
            StoreError: if there is no room for the copy; the file is as it was.
        """
        self._refuse_if_read_only("compact")
        self.ingest()
        with told(self.path):
            state = self.path.stat()
            if state.st_nlink > 1:
                raise StoreError(
                    f"{self.path} has another name (a hard link), which would keep the old file; remove one"
                )
            with self._connected(read_only=False) as connection:
                self._compact(connection)
            return state.st_size - self.path.stat().st_size

    def export_parquet(self, folder: str | os.PathLike[str], where: str | None = None) -> dict[str, int]:
        """Write rollouts, calls, spans and scores as Parquet files, in folders by run and day.

        Args:
            folder: a new or an empty one; it gets `rollouts/run=…/day=…/*.parquet`, and so on.
            where: a condition in SQL over the columns of `rollouts`.

        Returns:
            How many rows each of the four has.

        Raises:
            InvalidInput: if the folder holds something.
            QueryError: if DuckDB refuses the condition.
            StoreError: if the files cannot be written.
        """
        check_path(folder, "the folder")
        self.ingest()
        with self._connected(read_only=True) as connection:
            try:
                selected = selected_rollouts(connection, where)
            except duckdb.Error as error:
                raise QueryError(f"nothing was exported with where={where!r}: {reason_of(error)}") from error
        with self._connected(read_only=True, closed_off=False) as connection:
            try:
                return write_parquet(connection, Path(folder), selected)
            except (duckdb.Error, OSError) as error:
                raise StoreError(
                    f"{folder} cannot be written ({reason_in_a_line(error)}); {remedy(error)}, or name another folder: "
                    "nothing of it was left there"
                ) from error

    def check_condition(self, where: str) -> None:
        """Refuse what is not one condition in SQL over the columns of `rollouts`.

        Raises:
            QueryError: if the condition is none, or DuckDB refuses it.
        """
        with self._connected(read_only=True) as connection:
            try:
                check_condition(connection, where, "rollouts")
            except duckdb.Error as error:
                raise QueryError(f"nothing is selected with where={where!r}: {reason_of(error)}") from error

    def _compact(self, connection: DuckDBPyConnection) -> None:
        try:
            compact(connection, self.path)
        except (duckdb.Error, OSError) as error:
            raise StoreError(f"{self.path} could not be compacted ({error}); free the disk: it is as it was") from error

    def _prepare(self) -> None:
        if is_begun(self.path):
            with self._connected(read_only=True) as connection:
                if schema.is_current(connection, self.path):
                    return
        with self._connected(read_only=False) as connection:
            schema.prepare(connection, self.path)
            if schema.has_old_format(connection):
                self._compact(connection)

    @contextmanager
    def _connected(self, *, read_only: bool, closed_off: bool | None = None) -> Iterator[DuckDBPyConnection]:
        opened = connected(
            self.path,
            read_only=read_only,
            closed_off=read_only if closed_off is None else closed_off,
            wait=self._wait,
            memory_limit=self._memory_limit,
        )
        with told(self.path), opened as connection:
            yield connection

    @contextmanager
    def _spool(self) -> Iterator[Spool]:
        spool = Spool(self._spool_folder)
        try:
            yield spool
        finally:
            spool.close()
        if lost := spool.counts.lost:
            raise StoreError(
                f"{lost} records could not be written to {self._spool_folder}; free the disk or mend the folder"
            )

    def _refuse_if_read_only(self, what: str) -> None:
        if self.read_only:
            raise InvalidInput(
                f"{what} changes the store, and {self.path} was opened with read_only=True; open it without"
            )

    def _check_ids(self, what: str, view: str, column: str, ids: set[str | None]) -> None:
        asked = sorted(one for one in ids if one is not None)
        if not asked:
            return
        known = f"SELECT {column} FROM {view}"  # noqa: S608  our own names
        missing = self.sql(f"FROM (SELECT unnest(?) AS id) WHERE id NOT IN ({known}) ORDER BY id", [asked]).rows()
        if missing:
            more = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise UnknownId(f"{self.path} has no {what} {missing[0]['id']!r}{more}; see {known}")
