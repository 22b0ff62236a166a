"""How a program and a reward are called: inside their rollout, generators read to the end.

In threads, in event loops and in processes of their own they are called in the same way.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from tracetune import tracer
from tracetune.tracer.outcomes import error_type, status_of
from tracetune.types import Example, Rollout, Score


def as_program(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as a program: itself where it is decorated as one."""
    return function if tracer.is_program(function) else tracer.program(function)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, or what decorators have made of one, runs in an event loop.

    Example:
        >>> async def later() -> None: ...
        >>> is_async(later), is_async(partial(later)), is_async(print)
        (True, True, False)
    """
    innermost = inspect.unwrap(function)
    if not (inspect.isroutine(innermost) or isinstance(innermost, partial)):
        innermost = type(innermost).__call__
    return any(inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call) for call in (function, innermost))


def call_program(
    handle: tracer.RolloutHandle,
    program: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    is_left: Callable[[], bool] = bool,
    made: Callable[[Any], Any] = lambda output: output,
) -> Any:
    """What a program gives; of a generator, the list of its items.

    Args:
        handle: its rollout, which ends with this call.
        program: the program.
        inputs: its arguments.
        is_left: asked between two items: whether nobody waits for them any more.
        made: called with the output, and gives the one to return; the rollout fails where it raises.
    """
    with tracer.entered(handle):
        output = program(**inputs)
        with _failing(handle):
            # By its type alone: a hostile output may raise when it is asked for its class.
            is_generator = issubclass(type(output), types.GeneratorType)
            return made(_items(output, is_left) if is_generator else output)


async def call_async_program(
    handle: tracer.RolloutHandle,
    program: Callable[..., Any],
    inputs: Mapping[str, Any],
    *,
    is_left: Callable[[], bool] = bool,
    made: Callable[[Any], Any] = lambda output: output,
) -> Any:
    """The same of an async program or an async generator."""
    with tracer.entered(handle):
        output = program(**inputs)
        if issubclass(type(output), types.AsyncGeneratorType):
            with _failing(handle):
                return made(await _async_items(output, is_left))
        if inspect.isawaitable(output):
            output = await output
        with _failing(handle):
            return made(output)


def call_reward(handle: tracer.RolloutHandle, reward: Callable[..., Any], example: Example, rollout: Rollout) -> Score:
    """What a reward gives for a rollout, as plain numbers and texts.

    Raises:
        InvalidReward: if it is not a finite number, or a score of finite numbers.
    """
    with tracer.scoring(handle):
        return _plain(reward(example, rollout.output, rollout))


async def call_async_reward(
    handle: tracer.RolloutHandle, reward: Callable[..., Any], example: Example, rollout: Rollout
) -> Score:
    """The same of an async reward."""
    with tracer.scoring(handle):
        value = reward(example, rollout.output, rollout)
        return _plain(await value if inspect.isawaitable(value) else value)


@contextmanager
def _failing(handle: tracer.RolloutHandle) -> Iterator[None]:
    """What is raised in here fails the rollout, although its program has returned."""
    try:
        yield
    except BaseException as error:
        handle.close(status_of(error), error_type(error))
        raise


def _items(generator: Iterator[Any], is_left: Callable[[], bool]) -> list[Any]:
    items = []
    for item in generator:
        if is_left():
            break
        items.append(item)
    return items


async def _async_items(generator: AsyncIterator[Any], is_left: Callable[[], bool]) -> list[Any]:
    items = []
    async for item in generator:
        if is_left():
            break
        items.append(item)
    return items


def _plain(value: object) -> Score:
    """Plain numbers and texts: to look at anything else runs user code."""
    score = Score.of(value)
    return Score(score.value, str(score.feedback), {str(module): value for module, value in score.by_module.items()})
