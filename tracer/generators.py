"""Generators and async generators as one span each, from the first item to the last.

The body runs in a copy of the context in which the generator was made, so that whatever
it calls is its child however often it is put aside, and its consumer's context is never
touched. A generator that is closed early has ended well.
"""

from __future__ import annotations

import contextvars
import functools
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from typing import Any

from opentelemetry import context as otel_context

from tracetune.tracer.executions import OpenExecution, Traced
from tracetune.tracer.session import Session

# How many items the span's output shows; a stream may be endless.
ITEMS_LIMIT = 1000


def drive(
    traced: Traced,
    recorder: Session,
    generator: Generator[Any, Any, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Generator[Any, Any, Any]:
    """The same generator, traced."""
    return _drive(generator, contextvars.copy_context(), lambda: traced.begin(recorder, args, kwargs))


def drive_async(
    traced: Traced,
    recorder: Session,
    generator: AsyncGenerator[Any, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> AsyncGenerator[Any, Any]:
    """The same async generator, traced."""
    return _drive_async(generator, contextvars.copy_context(), lambda: traced.begin(recorder, args, kwargs))


def _drive(
    generator: Generator[Any, Any, Any], context: contextvars.Context, begin: Callable[[], OpenExecution | None]
) -> Generator[Any, Any, Any]:
    work = _Work(context.run(_enter, begin))
    step: Callable[[], Any] = functools.partial(next, generator)
    try:
        while True:
            item = work.saw(context.run(step))
            try:
                sent = yield item
            except GeneratorExit:
                context.run(generator.close)
                raise
            except BaseException as thrown:  # noqa: BLE001  it is the body's to handle
                step = functools.partial(generator.throw, thrown)
            else:
                step = functools.partial(generator.send, sent)
    except StopIteration as stop:
        work.end()
        return stop.value
    except GeneratorExit:
        work.end()
        raise
    except BaseException as error:
        work.end(error)
        raise


async def _drive_async(
    generator: AsyncGenerator[Any, Any], context: contextvars.Context, begin: Callable[[], OpenExecution | None]
) -> AsyncGenerator[Any, Any]:
    work = _Work(context.run(_enter, begin))
    step: Awaitable[Any] = generator.__anext__()
    try:
        while True:
            item = work.saw(await _awaited(context, step))
            try:
                sent = yield item
            except GeneratorExit:
                await _awaited(context, generator.aclose())
                raise
            except BaseException as thrown:  # noqa: BLE001  it is the body's to handle
                step = generator.athrow(thrown)
            else:
                step = generator.asend(sent)
    except (StopAsyncIteration, GeneratorExit) as end:
        work.end()
        if isinstance(end, GeneratorExit):
            raise
    except BaseException as error:
        work.end(error)
        raise


@types.coroutine
def _awaited(context: contextvars.Context, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Await in another context: each step of the awaited thing runs there."""
    steps: Any = awaitable.__await__()
    step: Callable[[], Any] = functools.partial(next, steps)
    while True:
        try:
            waits_for = context.run(step)
        except StopIteration as stop:
            return stop.value
        try:
            answer = yield waits_for
        except BaseException as thrown:  # noqa: BLE001  a cancellation, which is the body's to handle
            step = functools.partial(steps.throw, thrown)
        else:
            step = functools.partial(steps.send, answer)


def _enter(begin: Callable[[], OpenExecution | None]) -> OpenExecution | None:
    execution = begin()
    if execution is not None:
        otel_context.attach(execution.context)  # in the generator's own copy: there is nothing to restore
    return execution


class _Work:
    """A generator's execution, with the items that it has given."""

    def __init__(self, execution: OpenExecution | None) -> None:
        self._execution = execution
        self._items: list[Any] = []
        self._is_shortened = False

    def saw(self, item: Any) -> Any:
        if len(self._items) < ITEMS_LIMIT:
            self._items.append(item)
        else:
            self._is_shortened = True
        return item

    def end(self, error: BaseException | None = None) -> None:
        if self._execution is not None:
            self._execution.end(self._items, error=error, is_shortened=self._is_shortened)
