"""What the decorators accept, what they refuse, and what they leave as it was."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tracetune import tracer
from tracetune.errors import InvalidInput, TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import names


def test_a_decorated_function_looks_like_itself() -> None:
    """Its name, its documentation, its signature and its kind are kept."""

    def read(text: str, *, limit: int = 3) -> str:
        """Read."""
        return text[:limit]

    async def read_later(text: str) -> str:
        """Read later."""
        return text

    for function in (read, read_later):
        traced = tracer.module("other")(function)
        assert traced is not function
        assert (traced.__name__, traced.__doc__) == (function.__name__, function.__doc__)
        assert inspect.signature(traced) == inspect.signature(function)
        assert inspect.iscoroutinefunction(traced) == inspect.iscoroutinefunction(function)


@pytest.mark.parametrize("decorator", [tracer.program, tracer.module, tracer.tool])
def test_what_is_no_function_is_refused(decorator: Callable[[Any], Any]) -> None:
    """A number, a class and a blank name are refused where they are written."""
    with pytest.raises(InvalidInput, match=f"@{decorator.__name__} decorates a function or a method, not 3"):
        decorator(3)
    with pytest.raises(InvalidInput, match="decorates a function or a method, not <class"):
        decorator(Path)
    with pytest.raises(InvalidInput, match=f"a {decorator.__name__} needs a name that is not blank"):
        decorator(" ")


def test_a_key_that_asks_for_what_the_function_does_not_have_is_refused() -> None:
    """The refusal names what there is."""

    def hop(question: str, number: int) -> None:
        pass

    with pytest.raises(InvalidInput, match=r"the key of module 'hop' asks for index, but the .* are question, number"):
        tracer.module(key=lambda index: index)(hop)


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda hop: hop("a", 1), "1-x"),
        (lambda hop: hop("a", number=2, mark="y"), "2-y"),
        (lambda hop: hop(number=3, question="a"), "3-x"),
    ],
    ids=["by place", "by name", "mixed"],
)
def test_a_key_gets_the_arguments_that_it_names(call: Callable[[Any], Any], key: str, store: Path, spool: Path) -> None:
    """However they were passed, defaults included."""

    @tracer.module(key=lambda mark, number: f"{number}-{mark}")
    def hop(question: str, number: int, mark: str = "x") -> None:
        pass

    with tracer.recording(store):
        call(hop)
    (tree,) = span_tree(spool, attributes=(names.KEY,))
    assert tree["attributes"] == {names.KEY: key}


def test_a_key_that_raises_does_not_reach_the_program(store: Path, spool: Path) -> None:
    """The execution is recorded without a key, and one warning says why."""

    @tracer.module(key=lambda number: 1 // number)
    def hop(number: int) -> int:
        return number

    with (
        tracer.recording(store),
        pytest.warns(TracetuneWarning, match="the key of module 'hop' raised ZeroDivisionError"),
    ):
        assert hop(0) == 0
    (tree,) = span_tree(spool, attributes=(names.KEY,))
    assert tree["attributes"] == {names.KEY: ""}


@pytest.mark.parametrize(
    ("call", "recorded"),
    [
        (lambda f: f(1, 2, 3, 4, five=5), '{"one":1,"two":2,"rest":[3,4],"five":5}'),
        (lambda f: f(two=2, one=1), '{"two":2,"one":1}'),
    ],
    ids=["rest", "by name"],
)
def test_arguments_are_recorded_by_name(call: Callable[[Any], Any], recorded: str, store: Path, spool: Path) -> None:
    """As they were passed: a default that nobody passed is no input of the call's."""

    @tracer.module
    def take(one: int, two: int, *rest: int, three: int = 0, **named: int) -> None:
        pass

    with tracer.recording(store):
        call(take)
    (tree,) = span_tree(spool, attributes=(names.INPUT,))
    assert tree["attributes"] == {names.INPUT: recorded}


def test_a_call_that_does_not_fit_raises_what_it_always_raised(store: Path) -> None:
    """A wrong call gets Python's own TypeError."""

    @tracer.module
    def take(one: int) -> None:
        pass

    with tracer.recording(store), pytest.raises(TypeError, match=r"missing 1 required positional argument: 'one'"):
        take()  # type: ignore[call-arg]


def test_a_dropped_coroutine_leaves_the_context_as_it_was(store: Path, spool: Path) -> None:
    """A coroutine that is closed half-way ends its span, and what follows is not its child."""

    @tracer.module
    async def wait() -> None:
        await asyncio.sleep(0)

    @tracer.module
    def after() -> None:
        pass

    with tracer.recording(store):
        coroutine = wait()
        coroutine.send(None)
        coroutine.close()
        after()
    assert [tree["name"] for tree in span_tree(spool)] == ["wait", "after"]


def test_partials_and_callables(store: Path, spool: Path) -> None:
    """Whatever can be called can be decorated."""

    class Shout:
        def __call__(self, text: str) -> str:
            return text.upper()

    class ShoutLater:
        async def __call__(self, text: str) -> str:
            await asyncio.sleep(0)
            return text.upper()

    def join(left: str, right: str) -> str:
        return left + right

    with tracer.recording(store):
        assert tracer.module(Shout())("a") == "A"
        assert asyncio.run(tracer.module(ShoutLater())("a")) == "A"
        assert tracer.module("join_a")(functools.partial(join, "a"))("b") == "ab"
    trees = span_tree(spool, attributes=(names.OUTPUT,))
    assert [(tree["name"], tree["attributes"][names.OUTPUT]) for tree in trees] == [
        ("Shout", '"A"'),
        ("ShoutLater", '"A"'),
        ("join_a", '"ab"'),
    ]
