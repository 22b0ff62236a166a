"""What a decorated call takes of the stack, and what happens where there is none left."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import span_tree


def frames_below(name: str) -> int:
    """How many frames lie between the caller and the function of that name that called it."""
    frame: FrameType | None = sys._getframe(1).f_back
    count = 0
    while frame is not None and frame.f_code.co_name != name:
        count += 1
        frame = frame.f_back
    assert frame is not None
    return count


@tracer.module
def plain() -> int:
    """How many frames lie between its caller and itself."""
    return frames_below("caller")


@tracer.module
async def coroutine() -> int:
    """The same, async."""
    return frames_below("caller")


@tracer.module
def generator() -> Iterator[int]:
    """The same, as a generator; its first item and its later ones."""
    yield frames_below("caller")
    yield frames_below("caller")


@tracer.module
async def async_generator() -> AsyncIterator[int]:
    """The same, as an async generator."""
    yield frames_below("caller")
    await asyncio.sleep(0)
    yield frames_below("caller")


def call_plain() -> list[int]:
    """Calls the plain function."""

    def caller() -> list[int]:
        return [plain()]

    return caller()


def call_coroutine() -> list[int]:
    """Awaits the coroutine."""

    async def caller() -> list[int]:
        return [await coroutine()]

    return asyncio.run(caller())


def call_generator() -> list[int]:
    """Reads the generator."""

    def caller() -> list[int]:
        return list(generator())

    return caller()


def call_async_generator() -> list[int]:
    """Reads the async generator."""

    async def caller() -> list[int]:
        numbers = []
        async for number in async_generator():  # a comprehension is a frame of its own before Python 3.12
            numbers.append(number)
        return numbers

    return asyncio.run(caller())


@pytest.mark.parametrize(
    ("call", "frames"),
    [(call_plain, [1]), (call_coroutine, [1]), (call_generator, [1, 1]), (call_async_generator, [2, 2])],
    ids=["plain", "coroutine", "generator", "async generator"],
)
def test_how_many_frames_a_decorated_call_takes(store: Path, call: Callable[[], list[int]], frames: list[int]) -> None:
    """One more than the bare call, and two for an async generator, as docs/tracing.md says."""
    with tracer.recording(store):
        assert call() == frames


def in_fresh_stack(function: Callable[[], Any]) -> Any:
    """What a function gives, or raises, in a thread of its own."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # noqa: BLE001  it is the outcome
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


@tracer.module
def descend(levels: int) -> int:
    """Calls itself so many times."""
    return 0 if levels == 0 else 1 + descend(levels - 1)


def test_a_recursive_function_is_traced_to_nearly_half_the_limit(store: Path, spool: Path) -> None:
    """Every level takes two frames, its own and the decorator's; what tracing itself needs is some forty."""
    levels = sys.getrecursionlimit() // 2 - 40
    with tracer.recording(store) as recorded:
        assert in_fresh_stack(lambda: descend(levels)) == levels
    assert (recorded.counts.spans, recorded.counts.lost) == (levels + 1, 0)
    (tree,) = span_tree(spool, attributes=())
    depth = 0
    while tree["children"]:
        (tree,) = tree["children"]
        depth += 1
    assert depth == levels


def test_without_a_stack_left_the_program_runs_on(store: Path) -> None:
    """Where tracing has no stack left the function runs undecorated: its result, or its own RecursionError, stays."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with tracer.recording(store) as recorded:
            deepest = 0
            for levels in range(sys.getrecursionlimit() // 2 - 20, sys.getrecursionlimit()):
                outcome = in_fresh_stack(lambda levels=levels: descend(levels))
                if outcome != levels:
                    break
                deepest = levels
            assert type(outcome) is RecursionError
            assert deepest >= sys.getrecursionlimit() // 2 - 10
            # What came after is not held to overlap what has failed, and is recorded.
            before = recorded.counts.spans
            assert in_fresh_stack(lambda: descend(3)) == 3
            assert recorded.counts.spans == before + 4
    told = [str(warning.message) for warning in caught if issubclass(warning.category, TracetuneWarning)]
    assert len(told) == 1
    assert "module 'descend' could not be recorded (RecursionError: maximum recursion depth exceeded" in told[0]
