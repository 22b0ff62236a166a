"""Work that goes on after the function that began it has returned: generators, async generators, coroutines.

A generator is one span, from the first item to the last. OpenTelemetry's context, which
holds the current span and our scope, is the generator's own while its body runs and its
consumer's while it does not; so whatever the body calls is its child however often it is
put aside. All other context variables are the consumer's, as in a bare generator. A
generator that is closed early has ended well.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from tracetune.tracer import collector
from tracetune.tracer.executions import OpenExecution, Traced
from tracetune.tracer.session import Session

_Begin = Callable[[], OpenExecution | None]


def drive(
    traced: Traced,
    recorder: Session,
    generator: Generator[Any, Any, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Generator[Any, Any, Any]:
    """The same generator, traced; its execution begins with the first item, under whoever called this."""
    return _drive(generator, otel_context.get_current(), lambda: traced.begin(recorder, args, kwargs))


def drive_async(
    traced: Traced,
    recorder: Session,
    generator: AsyncGenerator[Any, Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> AsyncGenerator[Any, Any]:
    """The same async generator, traced."""
    return _drive_async(generator, otel_context.get_current(), lambda: traced.begin(recorder, args, kwargs))


def is_work(result: object) -> bool:
    """Whether a result is a coroutine or a generator of any sort."""
    # By identity, because a hostile metaclass may raise when its class is hashed or compared.
    kind = type(result)
    return kind is types.CoroutineType or kind is types.GeneratorType or kind is types.AsyncGeneratorType


def is_begun_work(result: object, args: tuple[Any, ...], is_any: bool) -> bool:
    """Whether what a function returned is work of its own that has yet to be done.

    Args:
        result: what it returned.
        args: what it was called with; what it only passes on is not its own.
        is_any: generators as well as coroutines.
    """
    if isinstance(result, types.CoroutineType):
        is_new = inspect.getcoroutinestate(result) == inspect.CORO_CREATED
    elif is_any and isinstance(result, types.GeneratorType):
        is_new = inspect.getgeneratorstate(result) == inspect.GEN_CREATED
    else:
        is_new = is_any and isinstance(result, types.AsyncGeneratorType)
    return is_new and not any(result is argument for argument in args)


def carry_on(execution: OpenExecution, work: Any) -> Any:
    """The same coroutine or generator; the execution that returned it lasts until it is done."""
    if isinstance(work, types.CoroutineType):
        carried: Any = _carry_coroutine(execution, work)
    elif isinstance(work, types.GeneratorType):
        carried = _drive(work, execution.context, lambda: execution)
    else:
        carried = _drive_async(work, execution.context, lambda: execution)
    carried.__name__, carried.__qualname__ = work.__name__, work.__qualname__
    weakref.finalize(carried, _dropped, execution, work).atexit = False
    return carried


def _dropped(execution: OpenExecution, work: Any) -> None:
    """Work that nobody ever asked for does not end by itself; who asks for it has ended it already."""
    execution.end()
    if isinstance(work, types.CoroutineType):
        work.close()  # one warning that it was never awaited is enough


async def _carry_coroutine(execution: OpenExecution, work: Coroutine[Any, Any, Any]) -> Any:
    place = _Place(execution.context)
    try:
        result = await _awaited(place, work)
    except BaseException as error:
        execution.end(error=error)
        raise
    execution.end(result)
    return result


def _drive(generator: Generator[Any, Any, Any], made_in: Context, begin: _Begin) -> Generator[Any, Any, Any]:
    execution, place = _enter(made_in, begin)
    sent: Any = None
    thrown: BaseException | None = None
    try:
        while True:
            # As in a decorated call: the body is resumed from here and from nowhere deeper.
            if collector.is_at_work():
                item = place.run(functools.partial(_resume, generator, sent, thrown))
            else:
                with place:
                    item = generator.send(sent) if thrown is None else generator.throw(thrown)
            if execution is not None:
                execution.gave(item)
            sent = thrown = None
            try:
                sent = yield item
            except GeneratorExit:
                place.run(generator.close)
                raise
            except BaseException as error:  # noqa: BLE001  it is the body's to handle
                thrown = error
    except StopIteration as stop:
        _end(execution)
        return stop.value
    except GeneratorExit:
        _end(execution)
        raise
    except BaseException as error:
        _end(execution, error)
        raise


async def _drive_async(
    generator: AsyncGenerator[Any, Any], made_in: Context, begin: _Begin
) -> AsyncGenerator[Any, Any]:
    execution, place = _enter(made_in, begin)
    step: Awaitable[Any] = _first(generator)
    try:
        while True:
            item = await _awaited(place, step)
            if execution is not None:
                execution.gave(item)
            try:
                sent = yield item
            except GeneratorExit:
                await _awaited(place, generator.aclose())
                raise
            except BaseException as thrown:  # noqa: BLE001  it is the body's to handle
                step = generator.athrow(thrown)
            else:
                step = generator.asend(sent)
    except (StopAsyncIteration, GeneratorExit) as end:
        _end(execution)
        if isinstance(end, GeneratorExit):
            raise
    except BaseException as error:
        _end(execution, error)
        raise


def _first(generator: AsyncGenerator[Any, Any]) -> Awaitable[Any]:
    """The first step of an async generator that the event loop does not get to know of.

    A loop closes at its end all that it knows of, at once: it would close the generator
    while its driver closes it too.
    """
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return generator.__anext__()
    finally:
        sys.set_asyncgen_hooks(*hooks)


@types.coroutine
def _awaited(place: _Place, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Await in another place: each step of the awaited thing runs there."""
    steps: Any = awaitable.__await__()
    sent: Any = None
    thrown: BaseException | None = None
    while True:
        try:
            if collector.is_at_work():
                waits_for = place.run(functools.partial(_resume, steps, sent, thrown))
            else:
                with place:
                    waits_for = steps.send(sent) if thrown is None else steps.throw(thrown)
        except StopIteration as stop:
            return stop.value
        sent = thrown = None
        try:
            sent = yield waits_for
        except BaseException as error:  # noqa: BLE001  a cancellation, which is the body's to handle
            thrown = error


def _resume(steps: Any, sent: Any, thrown: BaseException | None) -> Any:
    return steps.send(sent) if thrown is None else steps.throw(thrown)


class _Place:
    """The OpenTelemetry context of a body that is run step by step; as a context manager, for one step."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._token: Any = None

    def __enter__(self) -> None:
        self._token = otel_context.attach(self._context)

    def __exit__(self, *_: object) -> None:
        self._context = otel_context.get_current()
        otel_context.detach(self._token)

    def run(self, step: Callable[[], Any]) -> Any:
        """Run one step there, and keep what the body has made of it for the next."""
        return collector.run_apart(self._run, step)

    def _run(self, step: Callable[[], Any]) -> Any:
        token = otel_context.attach(self._context)
        try:
            return step()
        finally:
            self._context = otel_context.get_current()
            otel_context.detach(token)


def _enter(made_in: Context, begin: _Begin) -> tuple[OpenExecution | None, _Place]:
    execution = _Place(made_in).run(begin)
    if execution is not None:
        execution.streams()
    return execution, _Place(made_in if execution is None else execution.context)


def _end(execution: OpenExecution | None, error: BaseException | None = None) -> None:
    if execution is not None:
        execution.end(error=error)
