"""The decorators `program`, `module` and `tool`: every call of what they decorate becomes a span.

With nothing recording a decorated function costs one look at a global. While something
records, `executions` opens and closes the span; here stands only how each kind of
function (plain, async, generator, async generator) is run meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar, overload

from opentelemetry import context as otel_context

from tracetune.errors import InvalidInput
from tracetune.tracer import collector, session
from tracetune.tracer.executions import OpenExecution, Traced
from tracetune.tracer.generators import carry_on, drive, drive_async, is_begun_work, is_work
from tracetune.tracer.warn import warn

# The decorated thing keeps its own type: its parameters, its result, whether it is a method of any sort.
Function = TypeVar("Function", bound="Callable[..., Any] | classmethod[Any, Any, Any]")
Key = Callable[..., object]
_KIND = "__tracetune_kind__"


@contextlib.contextmanager
def _manager() -> Iterator[None]:
    yield


@contextlib.asynccontextmanager
async def _async_manager() -> AsyncIterator[None]:
    yield


# What contextlib makes of a function has the same code whatever the function.
_CONTEXT_MANAGERS = (_manager.__code__, _async_manager.__code__)
_WRAPPED_VALUES = (property, functools.cached_property)


@overload
def program(function: Function, /) -> Function: ...
@overload
def program(name: str | None = None, /, *, key: Key | None = None) -> Callable[[Function], Function]: ...
def program(function: Any = None, /, *, key: Key | None = None) -> Any:
    """Decorate the function whose one execution is a rollout.

    Called inside another program it is a part of that one's rollout, like a module.

    Args:
        function: what is decorated; or the program's name, by default the function's own.
        key: given the arguments that it names, gives what tells parallel executions apart.

    Raises:
        InvalidInput: if what is decorated is no function, or the key names an argument
            that the function does not have.

    Example:
        >>> @program
        ... def find(claim: str) -> list[str]:
        ...     return [claim]
        >>> find("water is wet")
        ['water is wet']
    """
    return _decorate("program", function, key)


@overload
def module(function: Function, /) -> Function: ...
@overload
def module(name: str | None = None, /, *, key: Key | None = None) -> Callable[[Function], Function]: ...
def module(function: Any = None, /, *, key: Key | None = None) -> Any:
    """Decorate a function that plays one LM role: what it calls is trained as one module.

    Args:
        function: what is decorated; or the module's name, by default the function's own.
        key: given the arguments that it names, gives what tells parallel executions apart.

    Raises:
        InvalidInput: as `program` does.

    Example:
        >>> @module("write_query", key=lambda hop: str(hop))
        ... def write(claim: str, hop: int) -> str:
        ...     return f"{claim} {hop}"
        >>> write("water is wet", hop=2)
        'water is wet 2'
    """
    return _decorate("module", function, key)


@overload
def tool(function: Function, /) -> Function: ...
@overload
def tool(name: str | None = None, /, *, key: Key | None = None) -> Callable[[Function], Function]: ...
def tool(function: Any = None, /, *, key: Key | None = None) -> Any:
    """Decorate a function that a program uses and that is not trained: a search, a calculator.

    Args:
        function: what is decorated; or the tool's name, by default the function's own.
        key: given the arguments that it names, gives what tells parallel executions apart.

    Raises:
        InvalidInput: as `program` does.

    Example:
        >>> @tool
        ... def search(query: str) -> list[str]:
        ...     return [query]
        >>> search("wet")
        ['wet']
    """
    return _decorate("tool", function, key)


def is_program(function: Callable[..., Any]) -> bool:
    """Whether a function, or the method that it is bound from, was decorated as a program.

    Example:
        >>> is_program(program(str.lower)), is_program(str.lower)
        (True, False)
    """
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, _KIND, None) == "program"


def _decorate(kind: str, function: Any, key: Key | None) -> Any:
    if function is None or isinstance(function, str):
        name = function
        if name is not None and not name.strip():
            raise InvalidInput(f"a {kind} needs a name that is not blank; leave it out to use the function's own")
        return lambda decorated: _decorated(kind, decorated, name, key)
    return _decorated(kind, function, None, key)


def _decorated(kind: str, function: Any, name: str | None, key: Key | None) -> Any:
    if isinstance(function, staticmethod | classmethod):
        return type(function)(_decorated(kind, function.__func__, name, key))
    if isinstance(function, _WRAPPED_VALUES):
        raise InvalidInput(f"@{kind} stands above @{type(function).__name__}; put it below, on the function itself")
    if isinstance(function, type) or not callable(function):
        raise InvalidInput(f"@{kind} decorates a function or a method, not {function!r:.80}")
    traced = Traced(kind, function, name, key)
    _warn_of_order(traced, function)
    is_object = not (inspect.isroutine(function) or isinstance(function, functools.partial))
    body = type(function).__call__ if is_object else function
    if inspect.isasyncgenfunction(body):
        wrapper = _async_generator(traced, function)
    elif inspect.iscoroutinefunction(body) or _is_awaitable_generator(body):
        wrapper = _coroutine(traced, function)
    elif inspect.isgeneratorfunction(body):
        wrapper = _generator(traced, function)
    else:
        wrapper = _plain(traced, function)
    wrapper = functools.wraps(function)(wrapper)
    _keep_methods(function, wrapper)
    setattr(wrapper, _KIND, kind)
    return wrapper


def _warn_of_order(traced: Traced, function: Any) -> None:
    """Warn where another order of decorators would record what this one loses."""
    below = getattr(function, _KIND, None)
    name = traced.name
    if traced.kind != "program" and below == "program":
        warn(f"@{traced.kind} {name!r} stands above @program, so it is in no rollout; put @program on top")
    elif traced.kind == "module" and below == "tool":
        warn(f"@module {name!r} stands above @tool, so its calls are the tool's and are not trained; put @module below")
    elif getattr(function, "__code__", None) in _CONTEXT_MANAGERS:
        warn(
            f"@{traced.kind} {name!r} stands above a context manager's decorator, so it records that one is made, "
            f"not what happens in it; put @{traced.kind} below, on the function itself"
        )


def _is_awaitable_generator(function: Any) -> bool:
    """Whether it was made by `types.coroutine`: a generator function whose result is awaited."""
    code = getattr(_innermost(function), "__code__", None)
    return isinstance(code, types.CodeType) and bool(code.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _innermost(function: Any) -> Any:
    """The function below all decorators that say what they wrap."""
    try:
        return inspect.unwrap(function)
    except ValueError:  # it says that it wraps itself
        return function


def _keep_methods(function: Any, wrapper: Any) -> None:
    """A callable that is more than a function keeps what else it can do: `lru_cache` its `cache_clear`, say."""
    if isinstance(function, types.FunctionType | types.MethodType | types.BuiltinFunctionType | functools.partial):
        return
    for name in dir(type(function)):
        if not name.startswith("_") and callable(inspect.getattr_static(type(function), name)):
            setattr(wrapper, name, getattr(function, name))


def _plain(traced: Traced, function: Callable[..., Any]) -> Callable[..., Any]:
    # What a decorator in between makes of a generator function is called like any function, and gives a generator.
    innermost = _innermost(function)
    hides_generator = inspect.isgeneratorfunction(innermost) or inspect.isasyncgenfunction(innermost)

    def call(*args: Any, **kwargs: Any) -> Any:
        recorder = session.active
        if recorder is None or (execution := traced.begin(recorder, args, kwargs)) is None:
            return function(*args, **kwargs)
        # The function is called from here and from nowhere deeper: a recursive one has no stack to spare.
        try:
            if collector.is_at_work():
                result = collector.run_apart(_run_within, execution, function, args, kwargs)
            else:
                token = otel_context.attach(execution.context)
                try:
                    result = function(*args, **kwargs)
                finally:
                    otel_context.detach(token)
        except BaseException as error:
            execution.end(error=error)
            raise
        if is_work(result) and is_begun_work(result, (*args, *kwargs.values()), hides_generator):
            return carry_on(execution, result)
        execution.end(result)
        return result

    return call


def _run_within(
    execution: OpenExecution, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    token = otel_context.attach(execution.context)
    try:
        return function(*args, **kwargs)
    finally:
        otel_context.detach(token)


def _coroutine(traced: Traced, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        recorder = session.active
        if recorder is None or (execution := traced.begin(recorder, args, kwargs)) is None:
            return await function(*args, **kwargs)
        token = otel_context.attach(execution.context)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            # A coroutine that was dropped is closed wherever the garbage collector runs, which may be another context.
            is_here = otel_context.get_current() is execution.context and not collector.is_at_work()
            if is_here or not isinstance(error, GeneratorExit):
                otel_context.detach(token)
            execution.end(error=error)
            raise
        otel_context.detach(token)
        execution.end(result)
        return result

    return call


def _generator(traced: Traced, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        recorder = session.active
        return generator if recorder is None else drive(traced, recorder, generator, args, kwargs)

    return call


def _async_generator(traced: Traced, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        generator = function(*args, **kwargs)
        recorder = session.active
        return generator if recorder is None else drive_async(traced, recorder, generator, args, kwargs)

    return call
