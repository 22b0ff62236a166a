"""Exceptions that want to end the process: a value's own do not reach the program, and a signal's do."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from pydantic import BaseModel, model_serializer

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import names
from tracetune.tracer.interrupts import is_interrupt


class Unrelated(BaseException):
    """An exception that is no `Exception`."""


RAISED: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt,
    "CancelledError": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
    "Unrelated": Unrelated,
    "group": lambda: BaseExceptionGroup("two", [SystemExit(1), KeyboardInterrupt()]),
}

HostileMaker = Callable[[Callable[[], BaseException]], Any]


def in_repr(make: Callable[[], BaseException]) -> Any:
    """A value that raises when it is shown."""

    class Value:
        def __repr__(self) -> str:
            raise make()

    return Value()


def in_attribute(make: Callable[[], BaseException]) -> Any:
    """A value whose declared fields raise."""

    class Value:
        __attrs_attrs__ = (type("Field", (), {"name": "x"}),)

        def __getattr__(self, name: str) -> Any:
            raise make()

    return Value()


def in_model(make: Callable[[], BaseException]) -> Any:
    """A model that raises when it is dumped."""

    class Model(BaseModel):
        x: int = 1

        @model_serializer
        def dump(self) -> dict[str, Any]:
            raise make()

    return Model()


def in_mapping(make: Callable[[], BaseException]) -> Any:
    """A mapping that raises when it is read."""

    class Items(Mapping[str, int]):
        def __len__(self) -> int:
            raise make()

        def __iter__(self) -> Iterator[str]:
            raise make()

        def __getitem__(self, key: str) -> int:
            raise make()

    return Items()


def in_key(make: Callable[[], BaseException]) -> Any:
    """A mapping with a key that raises when it is shown."""
    return {in_repr(make): 1, "a": 2}


def in_metaclass(make: Callable[[], BaseException]) -> Any:
    """A value whose class raises at everything."""

    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            raise make()

        def __hash__(cls) -> int:
            raise make()

        def __eq__(cls, other: object) -> bool:
            raise make()

        def __instancecheck__(cls, value: object) -> bool:
            raise make()

    class Value(metaclass=Meta):
        def __repr__(self) -> str:
            raise make()

    return Value()


MAKERS = [in_repr, in_attribute, in_model, in_mapping, in_key, in_metaclass]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("kind", RAISED)
def test_what_a_value_raises_does_not_reach_the_program(
    store: Path, spool: Path, kind: str, maker: HostileMaker
) -> None:
    """As an argument, a result, an item or a message it is recorded with a mark in its place; the result stays."""
    value = maker(RAISED[kind])

    @tracer.program
    def program(value: Any) -> Any:
        return module(value)

    @tracer.module
    def module(value: Any) -> Any:
        return value

    @tracer.tool
    def items(value: Any) -> Iterator[Any]:
        yield value

    with tracer.recording(store) as recorded:
        assert program(value) is value
        assert next(items(value)) is value
        tracer.record_call(messages=[{"role": "user", "content": value}], completion="x")
    assert recorded.counts.lost == 0
    assert sorted(tree["name"] for tree in span_tree(spool)) == ["chat ", "items", "program"]


@pytest.mark.parametrize("kind", RAISED)
def test_what_an_exception_raises_does_not_reach_the_program(store: Path, spool: Path, kind: str) -> None:
    """An exception that raises when it is asked what it says is itself what the program gets."""

    class Hostile(Exception):
        def __str__(self) -> str:
            raise RAISED[kind]()

    error = Hostile()

    @tracer.program
    def program() -> None:
        raise error

    with tracer.recording(store), pytest.raises(Hostile) as caught:
        program()
    assert caught.value is error
    (tree,) = span_tree(spool, attributes=(names.STATUS,))
    assert tree["attributes"] == {names.STATUS: "error"}


@pytest.mark.parametrize("kind", RAISED)
def test_what_hooks_raise_does_not_reach_the_program(store: Path, spool: Path, kind: str) -> None:
    """Keys, redaction hooks and span processors may want to end the process: the execution is recorded all the same."""

    class Processor(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise RAISED[kind]()

        def on_end(self, span: ReadableSpan) -> None:
            raise RAISED[kind]()

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            raise RAISED[kind]()

    def redact(text: str) -> str:
        raise RAISED[kind]()

    def key(word: str) -> str:
        raise RAISED[kind]()

    @tracer.module(key=key)
    def module(word: str) -> str:
        return word

    with pytest.warns(TracetuneWarning) as told, tracer.recording(store, processors=[Processor()], redact=redact):
        assert module("ant") == "ant"
    texts = [str(warning.message) for warning in told]
    assert [text.split(" raised")[0] for text in texts] == [
        "the key of module 'module'",
        "the redact function",
        "the span processor Processor",
    ]
    (tree,) = span_tree(spool, attributes=(names.OUTPUT,))
    assert tree["attributes"] == {names.OUTPUT: '"[redacted]"'}


class Signalled:
    """A value that gets a signal while it is shown."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        signal.raise_signal(self.number)
        return "shown"


@pytest.fixture
def handled() -> Iterator[None]:
    """Ctrl-C as in a program that nobody has put into the background, and a handler that exits."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(number)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGTERM: signal.signal(signal.SIGTERM, leave),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handled")
@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
    ids=["Ctrl-C", "a handler that exits"],
)
def test_a_signal_reaches_the_program(
    store: Path, spool: Path, number: signal.Signals, expected: type[BaseException]
) -> None:
    """Ctrl-C, and what a signal handler raises, end the program although they came while a value was looked at."""

    @tracer.module
    def takes(value: Any) -> None:
        """Gets the value."""

    @tracer.module
    def gives() -> Any:
        return Signalled(number)

    with tracer.recording(store) as recorded:
        with pytest.raises(expected):
            takes(Signalled(number))
        with pytest.raises(expected):
            gives()
        takes(1)
        gives_again = tracer.module("takes")(lambda value: value)
        gives_again(2)
    assert recorded.counts.lost == 0
    found = [
        (tree["name"], tree["attributes"]) for tree in span_tree(spool, attributes=(names.STATUS, names.UNORDERED))
    ]
    assert found == [("gives", {names.STATUS: "interrupted"}), ("takes", {}), ("takes", {})]


@pytest.mark.usefixtures("handled")
def test_what_a_handler_of_a_method_raises_is_an_interrupt() -> None:
    """A handler may be a method, and may call others; its exception is still a signal's."""

    class Handler:
        def handle(self, number: int, frame: FrameType | None) -> None:
            self.fail()

        def fail(self) -> None:
            raise Unrelated

    signal.signal(signal.SIGTERM, Handler().handle)
    with pytest.raises(Unrelated) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert is_interrupt(caught.value)


def test_no_exception_of_another_thread_is_an_interrupt() -> None:
    """Signals come in the main thread alone."""
    found: list[bool] = []

    def run() -> None:
        try:
            signal.default_int_handler(signal.SIGINT, None)
        except KeyboardInterrupt as error:
            found.append(is_interrupt(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
