"""Plain DuckDB tables in the shape of the store's views, for tests of the alignment alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import duckdb
import pyarrow as pa

from tracetune.grouping.groups.batches import group_batch
from tracetune.types import Group, GroupBatch, Grouping

ROLLOUT_COLUMNS = {
    "rollout_id": "VARCHAR", "run": "VARCHAR", "split": "VARCHAR", "step": "BIGINT", "superseded": "BOOLEAN",
    "rollout_index": "BIGINT", "program": "VARCHAR", "example_id": "VARCHAR", "started_at": "TIMESTAMP_NS",
    "duration_ms": "DOUBLE", "status": "VARCHAR", "error_type": "VARCHAR", "reward": "DOUBLE",
    "policy_version": "VARCHAR", "n_calls": "BIGINT", "input": "VARCHAR", "output": "VARCHAR", "trace_id": "VARCHAR",
}  # fmt: skip
CALL_COLUMNS = {
    "call_id": "VARCHAR", "rollout_id": "VARCHAR", "run": "VARCHAR", "split": "VARCHAR", "step": "BIGINT",
    "example_id": "VARCHAR", "module": "VARCHAR", "key": "VARCHAR", "invocation": "BIGINT", "turn": "BIGINT",
    "choice": "BIGINT", "kind": "VARCHAR", "started_at": "TIMESTAMP_NS", "duration_ms": "DOUBLE", "status": "VARCHAR",
    "model": "VARCHAR", "policy_version": "VARCHAR", "response_id": "VARCHAR", "messages": "VARCHAR",
    "completion": "VARCHAR", "finish_reason": "VARCHAR", "sampling": "VARCHAR", "prompt_token_ids": "INTEGER[]",
    "completion_token_ids": "INTEGER[]", "completion_logprobs": "DOUBLE[]", "exact": "BOOLEAN", "on_policy": "BOOLEAN",
    "cached": "BOOLEAN", "unordered": "BOOLEAN", "truncated": "BOOLEAN", "redacted": "BOOLEAN", "late": "BOOLEAN",
    "reward": "DOUBLE",
}  # fmt: skip
SCORE_COLUMNS = {
    "record_id": "VARCHAR", "recorded_at": "TIMESTAMP_NS", "rollout_id": "VARCHAR", "call_id": "VARCHAR",
    "module": "VARCHAR", "name": "VARCHAR", "value": "DOUBLE", "source": "VARCHAR", "feedback": "VARCHAR",
}  # fmt: skip
_COLUMNS = {"rollouts": ROLLOUT_COLUMNS, "calls": CALL_COLUMNS, "scores": SCORE_COLUMNS}

_ROLLOUT = {
    "run": "try-1", "split": "train", "step": 1, "superseded": False, "rollout_index": 0, "program": "agent",
    "example_id": "q1", "started_at": "2026-01-01", "duration_ms": 10.0, "status": "ok", "n_calls": 0,
}  # fmt: skip
_CALL = {
    "key": "", "turn": 0, "choice": 0, "kind": "call",
    "duration_ms": 1.0, "status": "ok", "messages": '[{"role": "user", "content": "go"}]', "completion": "done",
    "exact": False, "on_policy": False, "cached": False, "unordered": False, "truncated": False, "redacted": False,
    "late": False,
}  # fmt: skip


@dataclass
class Rows:
    """Rollouts, calls and scores as rows; `connection` makes them tables."""

    rollouts: list[dict[str, Any]] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    scores: list[dict[str, Any]] = field(default_factory=list)

    def rollout(
        self, rollout_id: str, reward: float | None, calls: Mapping[str, Iterable[str]], **columns: Any
    ) -> Rows:
        """Add a rollout: `calls` are call ids by module, in the order of invocations.

        Its `rollout_index` is its place among the rollouts of its example.
        """
        example = columns.get("example_id", _ROLLOUT["example_id"])
        index = sum(row["example_id"] == example for row in self.rollouts)
        row = {**_ROLLOUT, "rollout_id": rollout_id, "rollout_index": index, "reward": reward, **columns}
        self.rollouts.append(row)
        scope = {name: row[name] for name in ("rollout_id", "run", "split", "step", "example_id")}
        made = [
            (module, invocation, call_id) for module, ids in calls.items() for invocation, call_id in enumerate(ids)
        ]
        for second, (module, invocation, call_id) in enumerate(made):
            place = {"module": module, "invocation": invocation, "started_at": f"2026-01-01 00:00:{second:02}"}
            self.calls.append({**_CALL, **scope, **place, "call_id": call_id})
        return self

    def change(self, call_id: str, **columns: Any) -> Rows:
        """Change columns of one call."""
        next(row for row in self.calls if row["call_id"] == call_id).update(columns)
        return self

    def score(self, value: float, **columns: Any) -> Rows:
        """Add a score; later ones are more recent."""
        place = len(self.scores)
        row = {"record_id": f"s{place}", "recorded_at": f"2026-01-01 00:00:{place:02}", "name": "reward"}
        self.scores.append({**row, "value": value, **columns})
        return self

    def connection(self) -> duckdb.DuckDBPyConnection:
        """A connection to the tables `rollouts`, `calls` and `scores` with these rows and no others."""
        connection = _database().cursor()
        for name, rows in (("rollouts", self.rollouts), ("calls", self.calls), ("scores", self.scores)):
            connection.execute(f"TRUNCATE {name}")
            if rows:
                recorded = pa.table({column: [row.get(column) for row in rows] for column in _COLUMNS[name]})
                connection.register("recorded", recorded)
                connection.execute(f"INSERT INTO {name} FROM recorded")
                connection.unregister("recorded")
        return connection

    def batch(self, grouping: Grouping, where: str | None = None) -> GroupBatch:
        """The rows, grouped."""
        with self.connection() as connection:
            return group_batch(connection, grouping, where)


@cache
def _database() -> duckdb.DuckDBPyConnection:
    """One database in memory for all tests: starting one takes longer than a test."""
    connection = duckdb.connect(config={"threads": 1})
    for name, columns in _COLUMNS.items():
        connection.execute(f"CREATE TABLE {name} ({', '.join(f'{n} {kind}' for n, kind in columns.items())})")
    return connection


def rewards_by_group(batch: GroupBatch) -> dict[tuple[Any, ...], list[float]]:
    """The members' rewards in their order, by module and invocation."""
    return {_place(group): [member.reward for member in group.members] for group in batch}


def calls_by_group(batch: GroupBatch) -> dict[tuple[Any, ...], list[str]]:
    """The members' call ids in their order, by module and invocation."""
    return {_place(group): [member.call_id for member in group.members] for group in batch}


def reasons(batch: GroupBatch, kind: str = "call") -> dict[str, str]:
    """The reasons by id of what was left out."""
    return {entry.id: entry.reason for entry in batch.left_out if entry.kind == kind}


def _place(group: Group) -> tuple[Any, ...]:
    return tuple(group.key[column] for column in ("module", "invocation") if column in group.key)
