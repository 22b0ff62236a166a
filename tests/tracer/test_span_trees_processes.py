"""Programs that go on in other processes: what a child keeps, starts, and leaves to its parent."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from traced_programs import OVERLAPPING, double, module, program, record_elsewhere, trees_of

from tracetune import tracer
from tracetune.testing import span_tree, spool_records
from tracetune.tracer import names

FORK = multiprocessing.get_context("fork")
SPAWN = multiprocessing.get_context("spawn")


@tracer.module(key=lambda number: f"n{number}")
def double_by_key(number: int) -> int:
    """A module whose executions have keys."""
    return number * 2


@tracer.program
def forked() -> int:
    """A call in a forked child, and one after it in the parent."""
    child = os.fork()
    if child == 0:
        double(1)
        os._exit(0)
    os.waitpid(child, 0)
    return double(2)


@tracer.program
def process() -> int:
    """A call in a process of multiprocessing's."""
    child = FORK.Process(target=double, args=(1,))
    child.start()
    child.join()
    return child.exitcode or 0


@tracer.program
def pool() -> list[int]:
    """Calls in a pool of processes, with keys."""
    with FORK.Pool(2) as workers:
        return workers.map(double_by_key, [1, 2], chunksize=1)


@tracer.program
def executor() -> list[int]:
    """Calls in an executor of processes, with keys."""
    with ProcessPoolExecutor(2, mp_context=FORK) as workers:
        return sorted(workers.map(double_by_key, [1, 2]))


@tracer.program
def left_by_the_child() -> int:
    """A child that leaves by way of the program's own frames, as `sys.exit` does."""
    child = os.fork()
    if child == 0:
        double(1)
        sys.exit(0)
    os.waitpid(child, 0)
    return 1


@tracer.program
def spawned() -> list[int]:
    """A spawned process is a new one: nothing records there."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as workers:
        return list(workers.map(double, [1]))


def run_left_by_the_child() -> None:
    """The child goes no further than this."""
    parent = os.getpid()
    try:
        left_by_the_child()
    finally:
        if os.getpid() != parent:
            os._exit(0)


BY_KEY = (module("double_by_key", 0, "2", key="n1"), module("double_by_key", 0, "4", key="n2"))
CASES: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (forked, program("forked", "4", module("double", 0, "2", unordered=True), module("double", 0, "4"))),
    (process, program("process", "0", module("double", 0, "2", unordered=True))),
    (pool, program("pool", "[2,4]", *BY_KEY)),
    (executor, program("executor", "[2,4]", *BY_KEY)),
    (run_left_by_the_child, program("left_by_the_child", "1", module("double", 0, "2", unordered=True))),
    (spawned, program("spawned", "[2]")),
]


@pytest.mark.parametrize(("run", "expected"), CASES, ids=[case[1]["name"] for case in CASES])
@pytest.mark.filterwarnings(OVERLAPPING)
def test_the_spans_of_processes(run: Callable[[], Any], expected: dict[str, Any], store: Path, spool: Path) -> None:
    """A forked child's calls are in its parent's rollout; the rollout begins once, and ends in its parent only."""
    (tree,) = trees_of(run, store)
    # Two processes start their executions in whatever order they come to it.
    tree["children"].sort(key=lambda child: child["attributes"][names.KEY])
    assert tree == expected
    assert [started["program"] for started in spool_records(spool, names.RECORD_ROLLOUT)] == [expected["name"]]


def test_a_child_leaves_its_parents_rollout_to_its_parent(store: Path, spool: Path) -> None:
    """The block that a child leaves as well ends once, with what the parent's program gave; scores of both are kept."""
    parent = os.getpid()
    try:
        with tracer.recording(store), tracer.rollout(example_id="q1", id="r1"):
            double(1)
            child = os.fork()
            if child == 0:
                tracer.reward(0.5, name="of the child")
                raise ValueError("the child's trouble")
            os.waitpid(child, 0)
            tracer.reward(1.0)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert len(spool_records(spool, names.RECORD_ROLLOUT)) == 1
    assert spool_records(spool, names.RECORD_ROLLOUT_CLOSED) == [
        {"rollout_id": "r1", "status": "ok", "error_type": None, "output": None}
    ]
    assert [score["name"] for score in spool_records(spool, names.RECORD_SCORE)] == ["of the child", "reward"]


def test_a_spawned_process_starts_its_own_recording(store: Path, spool: Path) -> None:
    """Its rollouts are its own, in a segment of its own."""
    with tracer.recording(store), tracer.rollout(example_id="q0", id="r0"):
        double(2)
        with ProcessPoolExecutor(1, mp_context=SPAWN) as workers:
            elsewhere = workers.submit(record_elsewhere, str(store)).result()
    shown = (names.ROLLOUT_ID, names.OUTPUT)
    assert [node["attributes"] for node in span_tree(spool, attributes=shown)] == [
        {names.ROLLOUT_ID: "r0", names.OUTPUT: "4"},
        {names.ROLLOUT_ID: elsewhere, names.OUTPUT: "2"},
    ]
    assert len(list(spool.iterdir())) == 2


def test_seeds_and_processes_repeat_no_ids(store: Path, spool: Path) -> None:
    """`random.seed(0)` in children and grandchildren of one parent gives every span an id of its own all the same."""
    with tracer.recording(store):
        for _ in range(4):
            child = os.fork()
            if child == 0:
                try:
                    grandchild = os.fork()
                    random.seed(0)
                    for number in range(20):
                        double(number)
                    if grandchild:
                        os.waitpid(grandchild, 0)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
    ids = [
        span["spanId"]
        for segment in spool.iterdir()
        for line in segment.read_text().splitlines()
        for span in json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"]
    ]
    assert (len(ids), len(set(ids))) == (160, 160)
