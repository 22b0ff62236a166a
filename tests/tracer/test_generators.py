"""Generators and async generators behave as the bare ones do, and are one span each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import names


@tracer.tool
def add(left: int, right: int = 1) -> int:
    """What is called between and inside."""
    return left + right


@tracer.module
def countdown(start: int) -> Iterator[int]:
    """A generator that calls something for each item."""
    while start:
        yield add(start)
        start -= 1


def test_the_consumer_of_a_generator_keeps_its_own_context(store: Path, spool: Path) -> None:
    """What is called between two items is a child of the consumer, not of the generator."""

    @tracer.program
    def consume() -> int:
        return sum(add(number) for number in countdown(2))

    with tracer.recording(store):
        consume()
    (root,) = span_tree(spool, attributes=())
    assert [child["name"] for child in root["children"]] == ["countdown", "add", "add"]
    assert [child["name"] for child in root["children"][0]["children"]] == ["add", "add"]


def test_a_generator_takes_what_is_sent_and_thrown_and_gives_its_return_value(store: Path) -> None:
    """A traced generator behaves as the bare one does."""

    def echo() -> Iterator[Any]:
        received = []
        try:
            while True:
                received.append((yield len(received)))
        except KeyError as error:
            received.append(repr(error))
        return received

    def use(make: Callable[[], Any]) -> list[Any]:
        generator = make()
        seen = [next(generator), generator.send("a")]
        try:
            generator.throw(KeyError("stop"))
        except StopIteration as stop:
            seen.append(stop.value)
        return seen

    with tracer.recording(store):
        assert use(tracer.module(echo)) == use(echo) == [0, 1, ["a", "KeyError('stop')"]]


async def test_an_async_generator_is_cancelled_and_closed_as_the_bare_one_is(store: Path, spool: Path) -> None:
    """A cancellation reaches the body, and its clean-up runs to its end."""
    reached = asyncio.Event()
    cleaned = []

    @tracer.module
    async def endless() -> AsyncIterator[int]:
        try:
            yield 1
            reached.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("body")

    async def consume() -> None:
        async for _ in endless():
            pass

    with tracer.recording(store):
        task = asyncio.create_task(consume())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert cleaned == ["body"]
    assert span_tree(spool, attributes=(names.ERROR_TYPE,)) == [
        {
            "name": "endless",
            "attributes": {names.ERROR_TYPE: "asyncio.exceptions.CancelledError"},
            "exceptions": ["asyncio.exceptions.CancelledError"],
            "children": [],
        }
    ]


def test_a_generator_is_a_child_of_whoever_made_it(store: Path, spool: Path) -> None:
    """A module that hands out a generator is its parent, though somebody else reads it later."""

    @tracer.module
    def make() -> Iterator[int]:
        return countdown(1)

    @tracer.program
    def consume() -> list[int]:
        return list(make())

    with tracer.recording(store):
        consume()
    (root,) = span_tree(spool, attributes=())
    assert [child["name"] for child in root["children"]] == ["make"]
    assert [child["name"] for child in root["children"][0]["children"]] == ["countdown"]


def test_a_generator_that_is_never_read_is_no_execution(store: Path) -> None:
    """Nothing ran, so there is nothing to record."""
    with tracer.recording(store) as recorded:
        countdown(3)
    assert recorded.counts.spans == 0


def test_an_endless_generator_shows_its_first_items(store: Path, spool: Path) -> None:
    """The span's output is bounded, and marked."""

    @tracer.module
    def count() -> Iterator[int]:
        yield from range(5000)

    with tracer.recording(store):
        assert sum(count()) == sum(range(5000))
    (root,) = span_tree(spool, attributes=(names.OUTPUT, names.TRUNCATED))
    assert root["attributes"][names.TRUNCATED] == [names.OUTPUT]
    assert root["attributes"][names.OUTPUT].endswith(",999]")


async def test_each_async_generator_keeps_its_own_place(store: Path, spool: Path) -> None:
    """Two async generators read in turns, and tasks made inside one, are children of the right one."""

    @tracer.module
    async def countdown_later(start: int) -> AsyncIterator[int]:
        for number in range(start, 0, -1):
            yield await asyncio.create_task(add_later(number))

    @tracer.tool
    async def add_later(number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    @tracer.program
    async def consume() -> list[int]:
        left, right = countdown_later(2), countdown_later(2)
        numbers = [await anext(left), await anext(right), await anext(left), await anext(right)]
        assert [await anext(left, None), await anext(right, None)] == [None, None]
        return numbers

    with (
        tracer.recording(store),
        pytest.warns(TracetuneWarning, match="executions of module 'countdown_later' overlap"),
    ):
        assert await consume() == [3, 3, 2, 2]
    (root,) = span_tree(spool, attributes=())
    assert [child["name"] for child in root["children"]] == ["countdown_later"] * 2
    assert [len(child["children"]) for child in root["children"]] == [2, 2]


def test_an_async_generator_that_the_loop_closes_is_closed_once(
    store: Path, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is still open when the loop ends runs its clean-up to its end, and nobody complains."""
    cleaned: list[int] = []
    kept: list[Any] = []

    @tracer.module
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield add(1)
        finally:
            await asyncio.sleep(0)
            cleaned.append(add(2))

    async def leave_open() -> None:
        kept.append(endless())
        await anext(kept[0])

    with tracer.recording(store):
        asyncio.run(leave_open())
    assert (cleaned, caplog.records) == ([3], [])
    leaf = {"name": "add", "attributes": {}, "children": []}
    assert span_tree(spool, attributes=(names.STATUS,)) == [
        {"name": "endless", "attributes": {}, "children": [leaf, leaf]}
    ]
