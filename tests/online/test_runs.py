"""Runs: who records one, and what becomes of one whose process was killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import watched_run
from watched_run import train

import tracetune as tt
from tracetune.errors import CheckpointError, InvalidInput
from tracetune.online.runs import taken_run

SCRIPT = Path(watched_run.__file__)


def rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    """The answer to a query, as plain tuples."""
    return [tuple(row.values()) for row in tt.Store(store).sql(query).rows()]


@contextmanager
def living_run(store: Path, run: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the first step of a run; killed at the end of the block."""
    command = [sys.executable, str(SCRIPT), str(store), run, *options]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def test_a_run_killed_before_its_first_checkpoint_begins_once_more(tmp_path: Path):
    """Refused while its process lives, resumed from step 0 when that was killed; what was there is superseded."""
    store = tmp_path / "a.duckdb"
    with living_run(store, "x") as process:
        for settings in ({"run": "x"}, {}):
            with pytest.raises(InvalidInput, match=rf"run 'x' is being recorded by process {process.pid} on .*; wait"):
                train(store, resume=True, **settings)
    with living_run(store, "x", "--resume"):
        pass
    assert rows(store, "SELECT DISTINCT superseded, status FROM rollouts WHERE example_id = 'bee' ORDER BY ALL") == [
        (False, "interrupted"),
        (True, "interrupted"),
    ]
    with pytest.raises(InvalidInput, match=r"run 'x' is already in .*; pass resume=True to go on"):
        train(store, run="x")
    result = train(store, run="x", resume=True)
    assert (result.run, [report.step for report in result.reports], sorted(result.validations)) == ("x", [1, 2], [0])
    in_force = "SELECT split, step, example_id, status FROM rollouts WHERE NOT superseded ORDER BY ALL"
    assert rows(store, in_force) == [
        *[("train", step, word, "ok") for step in (1, 2) for word in ("ant", "bee")],
        ("val", 0, "cow", "ok"),
    ]
    assert train(store, run="x", resume=True, steps=3).reports[0].step == 3


@pytest.mark.parametrize("options", [(), ("--async",), ("--isolated",)], ids=["thread", "event loop", "process"])
def test_ctrl_c_ends_a_run_that_waits_without_end(tmp_path: Path, options: tuple[str, ...]):
    """With timeout=None, and a program that hangs or blocks its event loop, Ctrl-C ends the run and its process."""
    store = tmp_path / "a.duckdb"
    with living_run(store, "x", *options) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
        assert process.stderr is not None
        assert process.stderr.read().strip().endswith("KeyboardInterrupt")
    assert rows(store, "SELECT status FROM rollouts WHERE example_id = 'bee'") == [("interrupted",)]
    assert train(store, run="x", resume=True).reports[0].step == 1


def test_an_isolated_program_ends_with_the_process_that_runs_it(tmp_path: Path):
    """Nobody is left to kill it when the run's process was killed: it notices, and ends itself."""
    with living_run(tmp_path / "a.duckdb", "x", "--isolated") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("this system does not tell which processes a process has started")
        started = [pid for task in children.parent.parent.iterdir() for pid in (task / "children").read_text().split()]
    assert started
    for _ in range(600):
        if not any(is_running(pid) for pid in started):
            return
        time.sleep(0.1)
    raise AssertionError(f"{started} still run")


def is_running(pid: str) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_unknown_run_is_not_resumed(tmp_path: Path):
    """A name that no run has, and one that no training has, are refused, with the names that there are."""
    store = tmp_path / "a.duckdb"
    tt.Store(store).add_rollouts([{"run": "logs", "example_id": "q1"}])
    train(store, run="x")
    for name in ("y", "logs"):
        with pytest.raises(CheckpointError, match=rf"has no run '{name}' to resume; .* or name one of: x$"):
            train(store, run=name, resume=True)


def test_of_two_that_begin_a_run_at_once_one_records_it(tmp_path: Path):
    """Of many that take one name at the same moment, new or to resume, one gets it at a time."""
    store = tt.Store(tmp_path / "a.duckdb")
    for resume in (False, True):
        barrier, done = threading.Barrier(4), threading.Barrier(4)
        outcomes: list[str] = []

        def take(resume: bool = resume, barrier: Any = barrier, done: Any = done, outcomes: Any = outcomes) -> None:
            barrier.wait(60)
            try:
                with taken_run("x", tmp_path / "a.duckdb", store, resume=resume):
                    outcomes.append("taken")
                    done.wait(60)
            except InvalidInput:
                outcomes.append("refused")
                done.wait(60)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(outcomes) == ["refused", "refused", "refused", "taken"]


def test_a_forked_child_does_not_keep_its_parents_run(tmp_path: Path):
    """A child that outlives the run that it was forked in holds no lock on it."""
    path = tmp_path / "a.duckdb"
    context = multiprocessing.get_context("fork")
    release = context.Event()
    with taken_run("x", path, tt.Store(path), resume=False):
        child = context.Process(target=release.wait, args=(60,))
        child.start()
    try:
        with taken_run("x", path, tt.Store(path), resume=True) as name:
            assert name == "x"
    finally:
        release.set()
        child.join()
