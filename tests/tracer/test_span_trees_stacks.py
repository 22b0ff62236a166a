"""Decorators on top of each other, in every order: the spans, and a warning where an order loses something."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from traced_programs import double, double_later, module, program, span, trees_of

from tracetune import tracer
from tracetune.errors import InvalidInput, TracetuneWarning


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as most are: it knows nothing of generators and coroutines."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


@tracer.module
@logged
def logged_items(number: int) -> Iterator[int]:
    """A generator function below a plain decorator."""
    yield double(number)
    yield double(number + 1)


@tracer.module
@logged
async def logged_later(number: int) -> int:
    """An async function below a plain decorator."""
    return await double_later(number)


@tracer.module
@logged
async def logged_items_later(number: int) -> AsyncIterator[int]:
    """An async generator function below a plain decorator."""
    yield await double_later(number)


@tracer.module
def hand_on(number: int) -> Any:
    """A plain function that returns a coroutine, as a client's method may."""
    return double_later(number)


@tracer.module
@types.coroutine
def old_style(number: int) -> Generator[Any, Any, int]:
    """A generator that is awaited."""
    yield from asyncio.sleep(0).__await__()
    return double(number)


@tracer.tool
@tracer.module
def tool_and_module(number: int) -> Iterator[int]:
    """Two of ours on one generator function."""
    yield double(number)


@tracer.program
@tracer.module
def program_and_module(number: int) -> int:
    """A program of one module."""
    return double(number)


@functools.lru_cache
@tracer.module
def cached_above(number: int) -> int:
    """Traced where it runs."""
    return double(number)


@tracer.module
@functools.lru_cache
def cached_below(number: int) -> int:
    """Traced where it is called."""
    return double(number)


@contextlib.contextmanager
@tracer.module
def opened(number: int) -> Iterator[int]:
    """A context manager whose code is traced."""
    yield double(number)
    double(0)


@contextlib.asynccontextmanager
@tracer.module
async def opened_later(number: int) -> AsyncIterator[int]:
    """An async one."""
    yield await double_later(number)
    await double_later(0)


class Counter:
    """Methods of every sort, below and above."""

    @staticmethod
    @tracer.module
    def static_above(number: int) -> int:
        """`@staticmethod` on top."""
        return number

    @tracer.module
    @staticmethod
    def static_below(number: int) -> int:
        """`@staticmethod` below."""
        return number

    @tracer.module
    @classmethod
    def class_below(cls, number: int) -> int:
        """`@classmethod` below."""
        return number

    @property
    @tracer.module
    def total(self) -> int:
        """A property, traced when it is read."""
        return 3

    @tracer.module
    def __call__(self, number: int) -> int:
        """The instance itself."""
        return number


@tracer.program
def plain_stacks() -> list[Any]:
    """Generators below plain decorators."""
    return [list(logged_items(1)), list(tool_and_module(3))]


@tracer.program
async def async_stacks() -> list[Any]:
    """Coroutines below plain decorators, and out of plain functions."""
    items = [item async for item in logged_items_later(2)]
    return [await logged_later(1), items, await hand_on(3), await old_style(4)]


@tracer.program
def caches() -> list[int]:
    """A cache on either side, hit the second time."""
    cached_above.cache_clear()
    cached_below.cache_clear()  # type: ignore[attr-defined]  # kept from `lru_cache`
    return [cached_above(1), cached_above(1), cached_below(2), cached_below(2)]


@tracer.program
def managers() -> int:
    """What happens in a `with` block is the block's, not the manager's."""
    with opened(1) as number:
        return double(number)


@tracer.program
async def async_managers() -> int:
    """Likewise."""
    async with opened_later(1) as number:
        return await double_later(number)


@tracer.program
def methods() -> list[int]:
    """Methods of every sort."""
    counter = Counter()
    return [counter.static_above(1), Counter.static_below(2), counter.class_below(3), counter.total, counter(4)]


@tracer.program
def partials() -> list[int]:
    """A partial of a traced function, and a traced partial."""
    return [functools.partial(double, 1)(), tracer.module("double_two")(functools.partial(double, 2))()]


CASES: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (
        plain_stacks,
        program(
            "plain_stacks",
            "[[2,4],[6]]",
            module("logged_items", 0, "[2,4]", module("double", 0, "2"), module("double", 1, "4")),
            span(
                "tool",
                "tool_and_module",
                0,
                "[6]",
                module("tool_and_module", 1, "[6]", module("double", 2, "6")),
            ),
        ),
    ),
    (
        async_stacks,
        program(
            "async_stacks",
            "[2,[4],6,8]",
            module("logged_items_later", 0, "[4]", module("double_later", 0, "4")),
            module("logged_later", 0, "2", module("double_later", 1, "2")),
            module("hand_on", 0, "6", module("double_later", 2, "6")),
            module("old_style", 0, "8", module("double", 0, "8")),
        ),
    ),
    (
        lambda: program_and_module(1),
        program("program_and_module", "2", module("program_and_module", 1, "2", module("double", 0, "2"))),
    ),
    (
        caches,
        program(
            "caches",
            "[2,2,4,4]",
            module("cached_above", 0, "2", module("double", 0, "2")),
            module("cached_below", 0, "4", module("double", 1, "4")),
            module("cached_below", 1, "4"),
        ),
    ),
    (
        managers,
        program(
            "managers",
            "4",
            module("opened", 0, "[2]", module("double", 0, "2"), module("double", 2, "0")),
            module("double", 1, "4"),
        ),
    ),
    (
        async_managers,
        program(
            "async_managers",
            "4",
            module("opened_later", 0, "[2]", module("double_later", 0, "2"), module("double_later", 2, "0")),
            module("double_later", 1, "4"),
        ),
    ),
    (
        methods,
        program(
            "methods",
            "[1,2,3,3,4]",
            module("static_above", 0, "1"),
            module("static_below", 0, "2"),
            module("class_below", 0, "3"),
            module("total", 0, "3"),
            module("__call__", 0, "4"),
        ),
    ),
    (
        partials,
        program(
            "partials",
            "[2,4]",
            module("double", 0, "2"),
            module("double_two", 0, "4", module("double", 1, "4")),
        ),
    ),
]


@pytest.mark.parametrize(("run", "expected"), CASES, ids=[case[1]["name"] for case in CASES])
def test_the_spans_of_stacked_decorators(run: Callable[[], Any], expected: dict[str, Any], store: Path) -> None:
    """A span lasts as long as the work, whichever decorators stand between it and the function."""
    assert trees_of(run, store) == [expected]


def test_a_program_below_anything_else_of_ours_is_warned_of() -> None:
    """What stands above a program is in no rollout."""
    with pytest.warns(TracetuneWarning) as caught:
        tracer.module("ask")(logged(tracer.program(double)))
    assert [str(warning.message) for warning in caught] == [
        "@module 'ask' stands above @program, so it is in no rollout; put @program on top"
    ]
    assert caught[0].filename == __file__  # where it was written, not somewhere in ours


def test_a_module_above_a_tool_is_warned_of() -> None:
    """Its calls would be the tool's."""
    with pytest.warns(TracetuneWarning, match="@module 'add' stands above @tool, so its calls are the tool's"):
        tracer.module("add")(tracer.tool(lambda: None))


@pytest.mark.parametrize("decorator", [contextlib.contextmanager, contextlib.asynccontextmanager])
def test_a_decorator_above_a_context_managers_is_warned_of(decorator: Any) -> None:
    """It would see that a context manager is made, and nothing of what happens in it."""
    with pytest.warns(TracetuneWarning, match="@module 'manage' stands above a context manager's decorator"):
        tracer.module("manage")(decorator(lambda: iter(())))


@pytest.mark.parametrize("decorator", [property, functools.cached_property])
def test_a_decorator_above_a_property_is_refused(decorator: Any) -> None:
    """A property is no function: there is nothing to call."""
    with pytest.raises(InvalidInput, match=f"@tool stands above @{decorator.__name__}; put it below, on the function"):
        tracer.tool(decorator(lambda self: 3))


def test_what_a_function_only_passes_on_stays_what_it_is(store: Path) -> None:
    """A generator or a coroutine that a function was given comes out as it went in, and is not read."""

    @tracer.module
    def identity(value: Any) -> Any:
        return value

    with tracer.recording(store):
        numbers, coroutine = iter(range(3)), double_later(1)
        assert identity(numbers) is numbers
        assert identity(value=coroutine) is coroutine
        assert list(numbers) == [0, 1, 2]
        assert asyncio.run(coroutine) == 2


def test_context_variables_are_the_consumers(store: Path) -> None:
    """What a context manager sets is set in its block, and what its block sets is seen by it, as without tracing."""
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen = []

    @contextlib.contextmanager
    @tracer.module
    def setting(value: str) -> Iterator[None]:
        token = variable.set(value)
        yield
        seen.append(variable.get())
        variable.reset(token)

    with tracer.recording(store):
        with setting("inside"):
            seen.append(variable.get())
            variable.set("changed")
        seen.append(variable.get())
    assert seen == ["inside", "changed", "unset"]


def test_work_that_nobody_asks_for_ends_when_it_is_dropped(store: Path) -> None:
    """The execution that returned it is recorded, and the program's own warning comes as it did."""
    with tracer.recording(store) as recorded:
        logged_items(1)
        with pytest.warns(RuntimeWarning) as caught:
            hand_on(1)
        assert [str(warning.message) for warning in caught] == ["coroutine 'double_later' was never awaited"]
        assert recorded.counts.spans == 2
