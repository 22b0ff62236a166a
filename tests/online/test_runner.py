"""Rollouts run many at a time; whatever happens in one of them is its own affair."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import tracetune as tt
from tracetune.errors import InvalidReward
from tracetune.online.batches import RolloutRequest
from tracetune.online.runner import RolloutRunner
from tracetune.tracer import Choice, LMCall, recording
from tracetune.types import Example, Policy, Rollout

POLICY = Policy("http://127.0.0.1:1/v1", "key", "policy", "run-1@0")


@tt.module
def say(word: str) -> str:
    """A module with one call, which gives the word in capitals."""
    if call := LMCall.begin([{"role": "user", "content": word}], model="m"):
        call.end(choices=[Choice(word.upper(), "stop")])
    return word.upper()


@tt.program
def shout(word: str) -> str:
    """A program that fails in the way its word says."""
    if word == "crash":
        raise KeyError(word)
    if word == "exit":
        sys.exit(3)
    if word == "garble":
        raise tt.FormatError("no word in it")
    return say(word)


@tt.program
async def shout_later(word: str) -> str:
    """The same, async."""
    await asyncio.sleep(0)
    return say(word)


@tt.program
def shout_bit_by_bit(word: str) -> Iterator[str]:
    """The same, as a generator."""
    for letter in word:
        yield say(letter)


@tt.program
async def shout_later_bit_by_bit(word: str) -> AsyncIterator[str]:
    """The same, as an async generator."""
    for letter in word:
        yield say(letter)


def length(example: Example, output: Any, rollout: Rollout) -> float:
    """How long the output is: a number for whatever came out."""
    return float(len(output))


async def length_later(example: Example, output: Any, rollout: Rollout) -> float:
    """The same, async."""
    await asyncio.sleep(0)
    return float(len(output))


def run(
    folder: Path, program: Callable[..., Any], words: list[str], reward: Any = length, **settings: Any
) -> tuple[list[Rollout], Any]:
    """The rollouts of one program on some words, each an example, and their failures."""
    runner = RolloutRunner(program, reward, **({"max_concurrency": 4, "timeout": 60.0} | settings))
    requests = [RolloutRequest(Example(word, {"word": word}), 0, "train", 1, POLICY) for word in words]
    try:
        with recording(folder / "a.duckdb", run="run-1"):
            return runner.run(requests)
    finally:
        runner.close()


@pytest.mark.parametrize("reward", [length, length_later])
@pytest.mark.parametrize(
    ("program", "output"),
    [
        (shout, "ANT"),
        (shout_later, "ANT"),
        (shout_bit_by_bit, ["A", "N", "T"]),
        (shout_later_bit_by_bit, ["A", "N", "T"]),
    ],
)
def test_every_kind_of_program_and_reward_runs(tmp_path: Path, program: Any, reward: Any, output: Any):
    """Sync and async programs and generators give scored rollouts with their calls, under their example and step."""
    (rollout,), failures = run(tmp_path, program, ["ant"], reward)
    assert (rollout.output, rollout.reward, rollout.status) == (output, 3.0, "ok")
    assert (rollout.run, rollout.split, rollout.step, rollout.example_id) == ("run-1", "train", 1, "ant")
    assert "".join(call.completion for call in rollout.calls) == "ANT"
    assert {call.module for call in rollout.calls} == {"say"}
    assert (failures.programs, failures.rewards) == (0, 0)


def test_rollouts_come_in_the_order_of_the_requests(tmp_path: Path):
    """Whichever ends first, results stand where they were asked for."""
    release = threading.Event()

    @tt.program
    def wait_for_the_last(word: str) -> str:
        if word == "last":
            release.set()
        assert release.wait(60)
        return word

    rollouts, _ = run(tmp_path, wait_for_the_last, ["first", "second", "last"])
    assert [rollout.output for rollout in rollouts] == ["first", "second", "last"]


def test_what_fails_is_counted_and_the_rest_goes_on(tmp_path: Path):
    """A crash, an exit and a format error each end their own rollout, which stays unscored."""
    rollouts, failures = run(tmp_path, shout, ["crash", "exit", "garble", "ant"])
    assert [(rollout.status, rollout.error_type, rollout.reward) for rollout in rollouts] == [
        ("error", "KeyError", None),
        ("error", "SystemExit", None),
        ("format_error", "tracetune.errors.FormatError", None),
        ("ok", None, 3.0),
    ]
    assert failures.programs == 3
    assert repr(failures.first_program) in ("KeyError('crash')", "SystemExit(3)", "FormatError('no word in it')")


@pytest.mark.parametrize("bad", ["high", float("nan"), None])
def test_a_reward_that_is_no_number_leaves_its_rollout_unscored(tmp_path: Path, bad: object):
    """The rollout is kept without a reward, and the reason is kept too."""
    (rollout,), failures = run(tmp_path, shout, ["ant"], lambda example, output, rollout: bad)
    assert (rollout.status, rollout.reward, failures.rewards) == ("ok", None, 1)
    assert isinstance(failures.first_reward, InvalidReward)


def test_a_reward_that_raises_leaves_its_rollout_unscored(tmp_path: Path):
    """An exception in the reward function counts against that rollout only."""

    def picky(example: Example, output: str, rollout: Rollout) -> float:
        if output == "BEE":
            raise ZeroDivisionError
        return 1.0

    rollouts, failures = run(tmp_path, shout, ["ant", "bee", "cow"], picky)
    assert [rollout.reward for rollout in rollouts] == [1.0, None, 1.0]
    assert (failures.rewards, type(failures.first_reward)) == (1, ZeroDivisionError)


def test_a_rollout_that_hangs_is_closed_and_left_behind(tmp_path: Path):
    """After the timeout the rollout is closed, its next LM call raises, and the others are not held up."""
    release, refused = threading.Event(), threading.Event()

    @tt.program
    def hang(word: str) -> str:
        if word == "hang":
            release.wait(60)
            try:
                say(word)
            except tt.RolloutClosed:
                refused.set()
                raise
        return say(word)

    with recording(tmp_path / "a.duckdb"):
        # The other rollout has this long as well.
        rollouts, failures = run(tmp_path, hang, ["hang", "ant"], timeout=5.0)
        assert not refused.is_set()
        release.set()
        assert refused.wait(60)
    assert [(rollout.status, rollout.reward) for rollout in rollouts] == [("timeout", None), ("ok", 3.0)]
    assert (failures.programs, type(failures.first_program)) == (1, TimeoutError)


def test_an_async_rollout_that_hangs_is_cancelled(tmp_path: Path):
    """An async program is cancelled at the timeout, and its rollout's status says timeout, not error."""

    @tt.program
    async def hang(word: str) -> str:
        await asyncio.sleep(60)
        return word

    (rollout,), _ = run(tmp_path, hang, ["hang"], timeout=0.2)
    assert (rollout.status, rollout.reward) == ("timeout", None)


def test_never_more_at_once_than_asked_for(tmp_path: Path):
    """max_concurrency bounds how many rollouts are under way."""
    running, most, lock = 0, 0, threading.Lock()

    @tt.program
    def count(word: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return word

    run(tmp_path, count, [str(number) for number in range(30)], max_concurrency=3)
    assert 1 <= most <= 3


@pytest.fixture
def interruptible():
    """Ctrl-C raises in the main thread, even where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_what_is_under_way(tmp_path: Path):
    """Ctrl-C while rollouts run reaches the caller at once; those under way end as interrupted, and say so."""
    begun = []

    @tt.program
    async def wait(word: str) -> str:
        begun.append(word)
        if len(begun) == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        await asyncio.sleep(3600)
        return word

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, wait, ["ant", "bee"], timeout=3600.0)
    statuses = "SELECT status FROM rollouts"
    assert [row["status"] for row in tt.Store(tmp_path / "a.duckdb").sql(statuses).rows()] == ["interrupted"] * 2


def test_a_runner_that_is_closed_interrupts_what_is_under_way(tmp_path: Path):
    """Rollouts whose runner is closed before they end are interrupted: their cancelling is no error of theirs."""
    begun = threading.Semaphore(0)

    @tt.program
    async def wait(word: str) -> str:
        begun.release()
        await asyncio.sleep(60)
        return word

    runner = RolloutRunner(wait, length, max_concurrency=8, timeout=60.0)
    requests = [RolloutRequest(Example(word, {"word": word}), 0, "train", 1, POLICY) for word in "abcdefgh"]

    def close() -> None:
        for _ in requests:
            begun.acquire()
        runner.close()

    closing = threading.Thread(target=close)
    closing.start()
    with recording(tmp_path / "a.duckdb", run="run-1"), pytest.raises(CancelledError):
        runner.run(requests)
    closing.join()
    statuses = "SELECT status FROM rollouts"
    assert [row["status"] for row in tt.Store(tmp_path / "a.duckdb").sql(statuses).rows()] == ["interrupted"] * 8
