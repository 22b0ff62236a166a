"""Programs and rewards that do what their word says: raise, hang, block, cancel; and the runner around them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import tracetune as tt
from tracetune.online.batches import RolloutRequest
from tracetune.online.runner import RolloutRunner
from tracetune.tracer import recording
from tracetune.types import Example, Policy, Rollout

POLICY = Policy("http://127.0.0.1:1/v1", "key", "policy", "run-1@0")

# Long beside what a call takes, also on a busy machine; hanging calls are waited for as long as this.
TIMEOUT = 5.0
# A call that is waited for without end would take longer than this.
END = 120.0


class Unspeakable(Exception):
    """Ends the process when it is asked what it says, and raises when it is asked whether it is there."""

    def __str__(self) -> str:
        sys.exit(4)

    def __bool__(self) -> bool:
        raise KeyboardInterrupt


class Unrelated(BaseException):
    """An exception that is no `Exception`."""


RAISED: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "StopIteration": lambda: StopIteration("stop"),
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "TimeoutError": TimeoutError,
    "BaseException": BaseException,
    "Unrelated": Unrelated,
    "Unspeakable": Unspeakable,
    "ExceptionGroup": lambda: ExceptionGroup("two", [ValueError(1), StopIteration()]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("two", [SystemExit(1), KeyboardInterrupt()]),
    "RecursionError": RecursionError,
    "MemoryError": MemoryError,
}
# Python turns these into RuntimeError where they leave a coroutine or a generator.
TURNED = {"StopIteration", "StopAsyncIteration"}

release = threading.Event()


def misbehave(word: str) -> None:
    """Raise what the word names, hang where it says so, and pass over any other word."""
    if word in RAISED:
        raise RAISED[word]()
    if word == "hang":
        release.wait(END)


async def child_that_exits() -> None:
    """A task that wants to end the process."""
    sys.exit(5)


async def child_that_interrupts() -> None:
    """A task that wants to end its event loop."""
    raise KeyboardInterrupt


async def stubborn() -> None:
    """Cannot be cancelled."""
    while not release.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


def stop_loop() -> None:
    """Stop the event loop that this runs in."""
    asyncio.get_running_loop().stop()


async def misbehave_async(word: str) -> None:
    """The same in an event loop, and what is possible only there."""
    match word:
        case "child exits":
            await asyncio.create_task(child_that_exits())
        case "child interrupts":
            await asyncio.gather(asyncio.create_task(child_that_interrupts()), asyncio.sleep(0))
        case "forgotten child":
            forgotten.append(asyncio.create_task(child_that_exits()))
            await asyncio.sleep(0.1)
            raise LookupError
        case "stops its loop":
            stop_loop()
            await asyncio.sleep(0.05)
            raise LookupError
        case "cancels itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(END)
        case "sleeps":
            await asyncio.sleep(END)
        case "stubborn":
            await stubborn()
        case "thread":
            await asyncio.to_thread(release.wait, END)
        case "child blocks":
            await asyncio.create_task(block())
        case _:
            await asyncio.sleep(0)
            misbehave(word)


async def block() -> None:
    """Block the event loop."""
    release.wait(END)


forgotten: list[asyncio.Task[None]] = []


@tt.program
def plain(word: str) -> str:
    """A program that does what its word says."""
    misbehave(word)
    return word


@tt.program
async def coroutine(word: str) -> str:
    """The same, async."""
    await misbehave_async(word)
    return word


@tt.program
def generator(word: str) -> Iterator[str]:
    """The same, as a generator."""
    yield word
    misbehave(word)


@tt.program
async def async_generator(word: str) -> AsyncIterator[str]:
    """The same, as an async generator."""
    yield word
    await misbehave_async(word)


@tt.program
def endless(word: str) -> Iterator[str]:
    """A generator without end, for one word."""
    yield word
    while word == "endless" and not release.is_set():
        yield word


@tt.program
def lazy(word: str) -> Iterator[str]:
    """A function that returns a generator of somebody else's."""
    return (misbehave(word) or word for _ in range(1))


@tt.program
def honest(word: str) -> str:
    """A program that gives its word."""
    return word


class Loop:
    """A callable object that is async."""

    async def __call__(self, example: Example, output: Any, rollout: Rollout) -> float:
        """As `async_reward`."""
        await misbehave_async(example.inputs["word"])
        return 1.0


def reward(example: Example, output: Any, rollout: Rollout) -> float:
    """A reward that does what the example's word says."""
    misbehave(example.inputs["word"])
    return 1.0


async def async_reward(example: Example, output: Any, rollout: Rollout) -> float:
    """The same, async."""
    await misbehave_async(example.inputs["word"])
    return 1.0


def one(example: Example, output: Any, rollout: Rollout) -> float:
    """A reward for whatever came."""
    return 1.0


Outcome = tuple[str, str | None, float | None]


def outcomes(
    folder: Path, program: Any, reward: Any, steps: list[list[str]], **settings: Any
) -> tuple[list[list[Outcome]], list[tuple[int, int]]]:
    """Status, error and reward of each step's rollouts, one a word; and how many programs and rewards failed."""
    made: list[list[Outcome]] = []
    failed: list[tuple[int, int]] = []
    runner = RolloutRunner(program, reward, **({"max_concurrency": 16, "timeout": END} | settings))
    started = time.monotonic()
    try:
        with recording(folder / "a.duckdb", run="run-1"):
            for step, words in enumerate(steps):
                rollouts, failures = runner.run(
                    [RolloutRequest(Example(word, {"word": word}), 0, "train", step, POLICY) for word in words]
                )
                made.append([(rollout.status, rollout.error_type, rollout.reward) for rollout in rollouts])
                failed.append((failures.programs, failures.rewards))
                assert isinstance(failures.program_message + failures.reward_message, str)
    finally:
        runner.close()
    assert time.monotonic() - started < END / 2
    return made, failed
