"""The edges: what records the LM calls of clients and frameworks that know nothing of tracetune.

Each adapter patches one package and can undo it. `tracetune.record` switches on those of the
packages in use and off again; `instrument` does the same for one by hand. An adapter knows
functions of its package by name, so a version that renamed them cannot be recorded: `record`
then warns and records everything else. Traces that others recorded come in by `formats` and
`otlp`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module

from tracetune.adapters.packages import Package
from tracetune.errors import InvalidInput, MissingDependency
from tracetune.tracer.warn import warn

__all__ = ["available", "in_use", "instrument", "instrumented", "uninstrument"]

_PACKAGES = {
    package.extra: package
    for package in (
        Package("openai", "openai", "openai", "tracetune.adapters.openai", "calls of the OpenAI SDK"),
        Package(
            "langchain_core",
            "langchain-core",
            "langchain",
            "tracetune.adapters.langchain",
            "nodes and calls of LangChain and LangGraph",
        ),
        Package("litellm", "litellm", "litellm", "tracetune.adapters.litellm", "calls of litellm"),
        Package("dspy", "dspy", "dspy", "tracetune.adapters.dspy", "modules, tools and calls of DSPy"),
    )
}

_lock = threading.Lock()
_depths: dict[str, int] = {}
_undo: dict[str, Callable[[], None]] = {}
# A program may record many times; a package that cannot be patched is told of once.
_warned: set[str] = set()


def available() -> list[str]:
    """The names of the adapters whose package is installed.

    Example:
        >>> available()  # doctest: +SKIP
        ['openai', 'langchain', 'litellm', 'dspy']
    """
    return [name for name, package in _PACKAGES.items() if package.is_installed()]


def in_use() -> list[str]:
    """The names of the adapters that `tracetune.record` switches on by itself.

    These are OpenAI's, where it is installed, and those of the frameworks that the program
    has imported: importing one that it does not use would cost seconds.

    Example:
        >>> "openai" in in_use()
        True
    """
    return [name for name in available() if name == "openai" or _PACKAGES[name].name in sys.modules]


@contextmanager
def instrumented(names: Sequence[str] | None = None) -> Iterator[None]:
    """Record the LM calls of several packages in a block; warn, once, of one that cannot be patched.

    Args:
        names: of the adapters; by default those `in_use`.

    Raises:
        InvalidInput: if there is no such adapter.
        MissingDependency: if the package of an adapter that was asked for is not installed.

    Example:
        >>> with instrumented(["openai"]):
        ...     pass
    """
    asked = in_use() if names is None else list(names)
    for name in asked:
        _check(name)
    with ExitStack() as undo:
        for name in asked:
            try:
                _instrument(name)
            except MissingDependency as error:
                _warn_once(name, str(error))
            else:
                undo.callback(uninstrument, name)
        yield


def instrument(name: str) -> None:
    """Record the LM calls of one package, until `uninstrument` was called as often as this.

    Raises:
        InvalidInput: if there is no such adapter.
        MissingDependency: if its package is not installed, or is unlike what the adapter knows;
            the package is as it was then.

    Example:
        >>> instrument("openai")
        >>> uninstrument("openai")
    """
    _check(name)
    _instrument(name)


def uninstrument(name: str) -> None:
    """Undo one `instrument`; without one, nothing.

    Raises:
        InvalidInput: if there is no such adapter.
    """
    _check_name(name)
    with _lock:
        if not _depths.get(name):
            return
        _depths[name] -= 1
        if _depths[name]:
            return
        try:
            _undo.pop(name)()
        except Exception as error:  # noqa: BLE001  the program that recorded goes on
            _warn_once(name, f"{name} could not be put back as it was: {error}; start a new process to be sure")


def _instrument(name: str) -> None:
    package = _PACKAGES[name]
    with _lock:
        if not _depths.get(name):
            try:
                _undo[name] = import_module(package.adapter).install()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                # A package that is broken, or a stand-in for it, may raise anything: SystemExit, a panic of Rust.
                raise MissingDependency(package.failure(error)) from error
        _depths[name] = _depths.get(name, 0) + 1


def _warn_once(name: str, message: str) -> None:
    if name not in _warned:
        _warned.add(name)
        warn(message)


def _check(name: str) -> None:
    _check_name(name)
    if not _PACKAGES[name].is_installed():
        raise MissingDependency(
            f'the adapter {name!r} needs its package; install it with pip install "tracetune[{name}]"'
        )


def _check_name(name: str) -> None:
    if name not in _PACKAGES:
        raise InvalidInput(f"there is no adapter called {name!r}; there are: {', '.join(_PACKAGES)}")
