"""The spans of every kind of program, compared whole."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import deterministic, span_tree
from tracetune.tracer import names

SHOWN = (names.KIND, names.INVOCATION, names.KEY, names.UNORDERED, names.OUTPUT)


def span(kind: str, name: str, invocation: int, output: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A node of the expected tree."""
    attributes = {names.KIND: kind, names.KEY: more.get("key", ""), names.INVOCATION: invocation, names.OUTPUT: output}
    if more.get("unordered"):
        attributes[names.UNORDERED] = True
    return {"name": name, "attributes": attributes, "children": list(children)}


@tracer.module
def double(number: int) -> int:
    """A plain module."""
    return number * 2


@tracer.module
async def double_later(number: int) -> int:
    """An async module."""
    await asyncio.sleep(0)
    return number * 2


@tracer.module(key=lambda number: f"n{number}")
async def double_by_key(number: int) -> int:
    """An async module whose executions have keys."""
    await asyncio.sleep(0)
    return number * 2


@tracer.tool
def add(left: int, right: int = 1) -> int:
    """A tool."""
    return left + right


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
def forked() -> int:
    """A call in a forked child, and one after it in the parent."""
    child = os.fork()
    if child == 0:
        double(1)
        os._exit(0)
    os.waitpid(child, 0)
    return double(2)


def module(name: str, invocation: int, output: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A module in the expected tree."""
    return span("module", name, invocation, output, *children, **more)


PLAIN = (module("double", 0, "2"), module("double", 1, "4"), span("tool", "add", 0, "6"))
CASES: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (plain, span("program", "plain", 0, "6", *PLAIN)),
    (awaited, span("program", "awaited", 0, "6", module("double_later", 0, "2"), module("double_later", 1, "4"))),
    (
        interleaved,
        span(
            "program",
            "interleaved",
            0,
            "[8,4]",
            module("countdown", 0, "[4,2]", module("double", 0, "4"), module("double", 2, "2"), unordered=True),
            module("countdown", 1, "[4,2]", module("double", 1, "4"), module("double", 3, "2"), unordered=True),
        ),
    ),
    (
        closed_early,
        span("program", "closed_early", 0, "10", module("countdown_later", 0, "[10]", module("double_later", 0, "10"))),
    ),
    (threaded, span("program", "threaded", 0, "2", module("double", 0, "2"))),
    (pooled, span("program", "pooled", 0, "[2,4]", module("double", 0, "2"), module("double", 1, "4"))),
    (to_thread, span("program", "to_thread", 0, "2", module("double", 0, "2"))),
    (
        gathered,
        span(
            "program",
            "gathered",
            0,
            "[2,4]",
            module("double_by_key", 0, "2", key="n1"),
            module("double_by_key", 0, "4", key="n2"),
        ),
    ),
    (
        task_group,
        span(
            "program",
            "task_group",
            0,
            "6",
            module("double_later", 0, "2", unordered=True),
            module("double_later", 1, "4", unordered=True),
        ),
    ),
    (
        recursive,
        span(
            "program",
            "recursive",
            0,
            "2",
            module("factorial", 0, "2", module("factorial", 1, "1", module("factorial", 2, "1"))),
        ),
    ),
    (nested, span("program", "nested", 0, "6", span("program", "plain", 0, "6", *PLAIN))),
    (
        methods,
        span(
            "program",
            "methods",
            0,
            "[2,2,2]",
            module("twice", 0, "2", module("double", 0, "2")),
            module("class_twice", 0, "2"),
            module("static_twice", 0, "2"),
        ),
    ),
    (forked, span("program", "forked", 0, "4", module("double", 0, "2", unordered=True), module("double", 0, "4"))),
]


@pytest.mark.parametrize(("program", "expected"), CASES, ids=[case[0].__name__ for case in CASES])
@pytest.mark.filterwarnings("ignore:executions of module:tracetune.errors.TracetuneWarning")
def test_the_spans_of_a_program(program: Callable[[], Any], expected: dict[str, Any], store: Path, spool: Path) -> None:
    """Every execution is a span under the one that called it, whatever runs it."""
    with tracer.recording(store):
        result = program()
        if asyncio.iscoroutine(result):
            asyncio.run(result)
    assert span_tree(spool, attributes=SHOWN) == [expected]


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
