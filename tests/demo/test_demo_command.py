"""`tracetune demo`, as a person runs it: killed half-way, resumed, and looked into."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TRACETUNE = [sys.executable, "-m", "tracetune.cli"]
STEPS = 5


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo that was killed after its second step and started again, and what the second printed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [*TRACETUNE, "demo", "--steps", str(STEPS), "--seed", "1"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert any(line.startswith(f"step 2/{STEPS} ") for line in first.stderr)
        first.send_signal(signal.SIGKILL)
    second = subprocess.run([*command, "--resume"], cwd=folder, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    return folder, second.stdout


def sql(folder: Path, query: str) -> list[list[object]]:
    """The answer that the command line gives."""
    command = [*TRACETUNE, "sql", "demo.duckdb", query, "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return [list(row.values()) for row in json.loads(done.stdout)]


def test_it_tells_the_reward_before_and_after_and_where_to_look(resumed: tuple[Path, str]):
    """It ends with both held-out rewards, the path of the store and three queries with their answers."""
    _, printed = resumed
    assert re.search(r"^held-out reward: before \(after step [23]\) 0\.\d+, after 0\.\d+ ", printed, re.MULTILINE)
    assert "Every rollout, call, token and group is in demo.duckdb." in printed
    assert printed.count('tracetune sql demo.duckdb "SELECT') == 3
    assert "module  invocation  groups  reward_std" in printed


def test_the_remaining_steps_are_done_and_no_rollout_is_used_twice(resumed: tuple[Path, str]):
    """Each step has its 72 rollouts once, whatever was under way when the first process died."""
    folder, _ = resumed
    counted = "SELECT step, count(*) FROM rollouts WHERE split = 'train' AND NOT superseded GROUP BY step ORDER BY step"
    assert sql(folder, counted) == [[step, 72] for step in range(1, STEPS + 1)]
    used_by = "SELECT rollout_id, count(DISTINCT record_id) AS batches FROM batch_members GROUP BY rollout_id"
    assert sql(folder, f"SELECT max(batches) FROM ({used_by})") == [[1]]


def test_the_groups_of_hop_go_by_invocation_and_every_call_is_exact(resumed: tuple[Path, str]):
    """Module `hop` has groups of several invocations, `answer` of one, and all calls have their tokens."""
    folder, _ = resumed
    found = sql(folder, "SELECT module, invocation, count(*), avg(reward_std) FROM groups GROUP BY ALL ORDER BY ALL")
    assert [row[:2] for row in found[:3]] == [["answer", 0], ["hop", 0], ["hop", 1]]
    finished = "SELECT rollout_id FROM rollouts WHERE NOT superseded"
    assert sql(folder, f"SELECT bool_and(exact) FROM calls WHERE rollout_id IN ({finished})") == [[True]]
