"""The spans of every kind of program, compared whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from traced_programs import OVERLAPPING, add, double, double_later, module, program, span, trees_of

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import deterministic, span_tree
from tracetune.tracer import names


@tracer.module(key=lambda number: f"n{number}")
async def double_by_key(number: int) -> int:
    """An async module whose executions have keys."""
    await asyncio.sleep(0)
    return number * 2


@tracer.module
def countdown(start: int) -> Iterator[int]:
    """A generator that calls a module."""
    while start:
        yield double(start)
        start -= 1


@tracer.module
async def countdown_later(start: int) -> AsyncIterator[int]:
    """An async generator that calls a module."""
    while start:
        yield await double_later(start)
        start -= 1


@tracer.module
def factorial(number: int) -> int:
    """A module that calls itself."""
    return 1 if number == 0 else number * factorial(number - 1)


class Calculator:
    @tracer.module
    def twice(self, number: int) -> int:
        return double(number)

    @classmethod
    @tracer.module("class_twice")
    def of_class(cls, number: int) -> int:
        return number * 2

    @tracer.module
    @staticmethod
    def static_twice(number: int) -> int:
        return number * 2


@tracer.program
def plain() -> int:
    """Two calls and a tool."""
    return add(double(1), double(2))


@tracer.program
async def awaited() -> int:
    """Two async calls, one after the other."""
    return await double_later(1) + await double_later(2)


@tracer.program
def interleaved() -> list[int]:
    """Two generators, read in turns."""
    return [left + right for left, right in zip(countdown(2), countdown(2), strict=True)]


@tracer.program
async def closed_early() -> int:
    """An async generator, closed after its first item."""
    numbers = countdown_later(5)
    async for number in numbers:
        await numbers.aclose()
        return number
    return 0


@tracer.program
def threaded() -> int:
    """A call in a thread."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(double(1)))
    thread.start()
    thread.join()
    return results[0]


@tracer.program
def pooled() -> list[int]:
    """Calls in a pool of threads."""
    with ThreadPoolExecutor(1) as pool:
        return list(pool.map(double, [1, 2]))


@tracer.program
async def to_thread() -> int:
    """A call in the thread pool of an event loop."""
    return await asyncio.to_thread(double, 1)


@tracer.program
async def gathered() -> list[int]:
    """Parallel calls with keys."""
    return list(await asyncio.gather(double_by_key(1), double_by_key(2)))


@tracer.program
async def task_group() -> int:
    """Parallel calls without keys."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(double_later(number)) for number in (1, 2)]
    return sum(task.result() for task in tasks)


@tracer.program
def recursive() -> int:
    """A module inside itself."""
    return factorial(2)


@tracer.program
def nested() -> int:
    """A program inside a program."""
    return plain()


@tracer.program
def methods() -> list[int]:
    """Methods of every sort."""
    return [Calculator().twice(1), Calculator.of_class(1), Calculator.static_twice(1)]


@tracer.program
async def executor() -> int:
    """A call in an event loop's executor."""
    return await asyncio.get_running_loop().run_in_executor(None, double, 1)


@tracer.program
async def consumed_in_another_task() -> int:
    """An async generator that is made here and read in a task."""
    numbers = countdown_later(2)

    async def read() -> int:
        return sum([number async for number in numbers])

    return await asyncio.create_task(read())


@tracer.module
def wait_and_double(go: threading.Event) -> int:
    """What goes on in the background until it is told to."""
    go.wait(60)
    return double(1)


@tracer.program
def leave_behind(go: threading.Event) -> list[threading.Thread]:
    """A program that returns before the thread that it has started."""
    thread = threading.Thread(target=wait_and_double, args=(go,))
    thread.start()
    threads.append(thread)
    return []


threads: list[threading.Thread] = []


def in_the_background() -> None:
    """Work that outlives its program."""
    go = threading.Event()
    leave_behind(go)
    go.set()
    threads.pop().join()


def in_the_background_of_a_rollout() -> None:
    """Work that outlives its rollout's block."""
    go = threading.Event()
    with tracer.rollout(example_id="q1"):
        leave_behind(go)
    go.set()
    threads.pop().join()


LEFT_BEHIND = program(
    "leave_behind",
    "[]",
    module("wait_and_double", 0, "2", module("double", 0, "2", late=True), late=True),
)
PLAIN = (module("double", 0, "2"), module("double", 1, "4"), span("tool", "add", 0, "6"))
CASES: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (plain, program("plain", "6", *PLAIN)),
    (awaited, program("awaited", "6", module("double_later", 0, "2"), module("double_later", 1, "4"))),
    (
        interleaved,
        program(
            "interleaved",
            "[8,4]",
            module("countdown", 0, "[4,2]", module("double", 0, "4"), module("double", 2, "2"), unordered=True),
            module("countdown", 1, "[4,2]", module("double", 1, "4"), module("double", 3, "2"), unordered=True),
        ),
    ),
    (
        closed_early,
        program("closed_early", "10", module("countdown_later", 0, "[10]", module("double_later", 0, "10"))),
    ),
    (threaded, program("threaded", "2", module("double", 0, "2"))),
    (pooled, program("pooled", "[2,4]", module("double", 0, "2"), module("double", 1, "4"))),
    (to_thread, program("to_thread", "2", module("double", 0, "2"))),
    (
        gathered,
        program(
            "gathered",
            "[2,4]",
            module("double_by_key", 0, "2", key="n1"),
            module("double_by_key", 0, "4", key="n2"),
        ),
    ),
    (
        task_group,
        program(
            "task_group",
            "6",
            module("double_later", 0, "2", unordered=True),
            module("double_later", 1, "4", unordered=True),
        ),
    ),
    (
        recursive,
        program(
            "recursive",
            "2",
            module("factorial", 0, "2", module("factorial", 1, "1", module("factorial", 2, "1"))),
        ),
    ),
    (nested, program("nested", "6", program("plain", "6", *PLAIN))),
    (
        methods,
        program(
            "methods",
            "[2,2,2]",
            module("twice", 0, "2", module("double", 0, "2")),
            module("class_twice", 0, "2"),
            module("static_twice", 0, "2"),
        ),
    ),
    (executor, program("executor", "2", module("double", 0, "2"))),
    (
        consumed_in_another_task,
        program(
            "consumed_in_another_task",
            "6",
            module("countdown_later", 0, "[4,2]", module("double_later", 0, "4"), module("double_later", 1, "2")),
        ),
    ),
    (in_the_background, LEFT_BEHIND),
    (in_the_background_of_a_rollout, LEFT_BEHIND),
]


@pytest.mark.parametrize(("run", "expected"), CASES, ids=[case[0].__name__ for case in CASES])
@pytest.mark.filterwarnings(OVERLAPPING)
def test_the_spans_of_a_program(run: Callable[[], Any], expected: dict[str, Any], store: Path) -> None:
    """Every execution is a span under the one that called it, whatever runs it."""
    assert trees_of(run, store) == [expected]


def test_all_that_a_span_says(store: Path, spool: Path) -> None:
    """With ids and times that repeat, a whole trace repeats, attribute for attribute."""
    with (
        deterministic(),
        tracer.recording(store, run="try-1", split="train", step=3),
        tracer.rollout(example_id="q17", id="r1"),
    ):
        plain()
    shared = {
        names.RUN: "try-1",
        names.SPLIT: "train",
        names.STEP: 3,
        names.ROLLOUT_ID: "r1",
        names.EXAMPLE_ID: "q17",
        names.KEY: "",
    }

    def attributes(kind: str, module: str, invocation: int, execution: int, given: str, gave: str) -> dict[str, Any]:
        return shared | {
            names.KIND: kind,
            names.MODULE: module,
            names.INVOCATION: invocation,
            names.EXECUTION: f"{execution:016x}",
            names.INPUT: given,
            names.OUTPUT: gave,
        }

    def leaf(kind: str, module: str, *rest: Any) -> dict[str, Any]:
        return {"name": module, "attributes": attributes(kind, module, *rest), "children": []}

    assert span_tree(spool) == [
        {
            "name": "plain",
            "attributes": attributes("program", "plain", 0, 3, "{}", "6"),
            "children": [
                leaf("module", "double", 0, 4, '{"number":1}', "2"),
                leaf("module", "double", 1, 5, '{"number":2}', "4"),
                leaf("tool", "add", 0, 6, '{"left":2,"right":4}', "6"),
            ],
        }
    ]


def test_overlapping_executions_without_a_key_are_warned_of_once(store: Path) -> None:
    """The warning names the module and says what to do, and does not come again."""

    async def twice() -> None:
        await task_group()
        await task_group()

    with tracer.recording(store), pytest.warns(TracetuneWarning) as caught:
        asyncio.run(twice())
    assert [str(warning.message) for warning in caught] == [
        "executions of module 'double_later' overlap, so they can't be aligned by their order; "
        "give each branch a key: @module(key=lambda …: …)"
    ]


def test_a_program_that_raises_leaves_its_exception_in_its_span(store: Path, spool: Path) -> None:
    """The exception reaches the caller as it was raised, and each span it passed says so."""

    @tracer.module
    def parse(text: str) -> int:
        return int(text)

    @tracer.program
    def read(text: str) -> int:
        return parse(text)

    with tracer.recording(store), pytest.raises(ValueError, match="invalid literal"):
        read("five")
    shown = {names.STATUS: "error", names.ERROR_TYPE: "ValueError"}
    assert span_tree(spool, attributes=tuple(shown)) == [
        {
            "name": "read",
            "attributes": shown,
            "exceptions": ["ValueError"],
            "children": [{"name": "parse", "attributes": shown, "exceptions": ["ValueError"], "children": []}],
        }
    ]
