"""Grouping: calls to groups with advantages, beside DuckDB's own GROUP BY over the same calls.

Both sides read the same tables in one process, alternating; the table gives medians. The
groups' sizes and means must agree with the GROUP BY, and the advantages of a sample of
groups with numpy. The last column is for information: the same calls all the way to the
Python values that a trainer takes.

    python benchmarks/grouping.py
    python benchmarks/grouping.py --calls 100000 --repeats 3
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracetune.grouping.groups.batches import aligned, group_batch
from tracetune.grouping.queries.results import read_table
from tracetune.types import Grouping

BAR = 12.0
CALLS_PER_ROLLOUT = 5
ROLLOUTS_PER_EXAMPLE = 12
EXAMPLES_PER_STEP = 4
GROUPING = Grouping(drop_constant=False)
KEY = "run, split, step, example_id, module, key, invocation, turn"
GROUP_BY = f"SELECT {KEY}, count(*) AS size, avg(reward) AS reward_mean FROM calls GROUP BY ALL"


def build(calls: int) -> duckdb.DuckDBPyConnection:
    """A database in memory: rollouts of four `hop` calls and one `answer`, twelve rollouts an example."""
    connection = duckdb.connect()
    connection.execute(
        f"""
        CREATE TABLE rollouts AS
        SELECT
            'rollout-' || i AS rollout_id, 'try-1' AS run, 'train' AS split,
            i // {ROLLOUTS_PER_EXAMPLE * EXAMPLES_PER_STEP} AS step, false AS superseded,
            i % {ROLLOUTS_PER_EXAMPLE} AS rollout_index, 'agent' AS program,
            'example-' || i // {ROLLOUTS_PER_EXAMPLE} AS example_id, 'ok' AS status, NULL::VARCHAR AS error_type,
            hash(i) % 5 / 4 AS reward, 'try-1@0' AS policy_version
        FROM range({calls // CALLS_PER_ROLLOUT}) AS numbers(i)
        """
    )
    connection.execute(
        f"""
        CREATE TABLE calls AS
        SELECT
            rollout_id || '-' || place AS call_id, rollout_id, run, split, step, example_id,
            CASE WHEN place = {CALLS_PER_ROLLOUT - 1} THEN 'answer' ELSE 'hop' END AS module, '' AS key,
            place % {CALLS_PER_ROLLOUT - 1} AS invocation, 0 AS turn, 0 AS choice, 'call' AS kind,
            TIMESTAMP_NS '2026-01-01' + to_milliseconds(place) AS started_at, 'ok' AS status, policy_version,
            '[{{"role": "user", "content": "who is next after ' || rollout_id || '?"}}]' AS messages,
            'the next name is ' || hash(rollout_id, place) AS completion, 'stop' AS finish_reason,
            '{{"temperature": 1.0}}' AS sampling,
            [hash(rollout_id, i) % 30000 FOR i IN range(32)]::INTEGER[] AS prompt_token_ids,
            [hash(rollout_id, place, i) % 30000 FOR i IN range(8)]::INTEGER[] AS completion_token_ids,
            [-0.125::DOUBLE FOR i IN range(8)] AS completion_logprobs,
            true AS exact, true AS on_policy, false AS cached, false AS unordered, false AS truncated,
            false AS redacted, false AS late,
            reward
        FROM rollouts, range({CALLS_PER_ROLLOUT}) AS places(place)
        """
    )
    connection.execute("CREATE TABLE scores (record_id VARCHAR)")
    return connection


def grouped_by_duckdb(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """DuckDB's own GROUP BY."""
    return read_table(connection, GROUP_BY)


def grouped_with_advantages(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """One row a call, with group, slot and advantage."""
    with aligned(connection, GROUPING) as alignment:
        return alignment.rows("SELECT group_id, slot, call_id, rollout_id, reward, advantage FROM aligned_members")


def check(connection: duckdb.DuckDBPyConnection, calls: int) -> None:
    """Both sides have the same groups; a sample of advantages is what numpy says."""
    expected = grouped_by_duckdb(connection)
    members = grouped_with_advantages(connection)
    assert members.num_rows == calls, f"{members.num_rows} members of {calls} calls"
    found = members.group_by("group_id").aggregate([("reward", "count"), ("reward", "mean")])
    by_id = dict(
        zip(
            found.column("group_id").to_pylist(),
            zip(found.column("reward_count").to_pylist(), found.column("reward_mean").to_pylist(), strict=True),
            strict=True,
        )
    )
    assert len(by_id) == expected.num_rows, f"{len(by_id)} groups, GROUP BY has {expected.num_rows}"
    for row in expected.to_pylist():
        size, mean = by_id["/".join(str(row[column]) for column in KEY.split(", "))]
        assert size == row["size"]
        assert abs(mean - row["reward_mean"]) < 1e-12
    sampled = pa.array(list(by_id)[:: max(1, len(by_id) // 200)])
    sample = members.filter(pc.is_in(members.column("group_id"), sampled))
    group_ids = np.array(sample.column("group_id").to_pylist())
    rewards = sample.column("reward").to_numpy()
    advantages = sample.column("advantage").to_numpy()
    for group_id in np.unique(group_ids):
        inside = group_ids == group_id
        spread = np.std(rewards[inside], ddof=1) if inside.sum() > 1 else 0.0
        np.testing.assert_allclose(
            advantages[inside], (rewards[inside] - rewards[inside].mean()) / (spread + GROUPING.eps), atol=1e-9
        )


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work took."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-objects", action="store_true", help="leave out the Python values")
    arguments = parser.parse_args()
    print(
        f"| calls | groups | GROUP BY, ms | groups with advantages, ms | ratio (bar {BAR:g}) | to Python values, ms |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for asked in arguments.calls:
        calls = asked - asked % CALLS_PER_ROLLOUT
        with build(calls) as connection:
            check(connection, calls)
            plain, ours = [], []
            for _ in range(arguments.repeats):
                plain.append(seconds(lambda: grouped_by_duckdb(connection)))
                ours.append(seconds(lambda: grouped_with_advantages(connection)))
            objects = "" if arguments.no_objects else f"{seconds(lambda: group_batch(connection, GROUPING)) * 1e3:.0f}"
            groups = grouped_by_duckdb(connection).num_rows
        before, after = statistics.median(plain), statistics.median(ours)
        print(
            f"| {calls:,} | {groups:,} | {before * 1e3:.1f} | {after * 1e3:.0f} | {after / before:.1f} | {objects} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
