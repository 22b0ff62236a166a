"""The edges: what records the LM calls of clients and frameworks that know nothing of tracetune.

Each adapter patches one package and can undo it. `tracetune.record` switches on those of the
packages in use and off again; `instrument` does the same for one by hand. Traces that others
recorded come in by `formats` and `otlp`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from tracetune.errors import InvalidInput, MissingDependency

__all__ = ["available", "in_use", "instrument", "uninstrument"]

# Package, and the module here whose `install` patches it and gives the function that undoes that.
_ADAPTERS = {
    "openai": "tracetune.adapters.openai",
    "langchain": "tracetune.adapters.langchain",
    "litellm": "tracetune.adapters.litellm",
    "dspy": "tracetune.adapters.dspy",
}
_PACKAGES = {"langchain": "langchain_core"}  # where it is not called as the adapter is

_lock = threading.Lock()
_depths: dict[str, int] = {}
_undo: dict[str, Callable[[], None]] = {}


def available() -> list[str]:
    """The names of the adapters whose package is installed.

    Example:
        >>> available()  # doctest: +SKIP
        ['openai', 'langchain', 'litellm', 'dspy']
    """
    return [name for name in _ADAPTERS if _is_installed(name)]


def in_use() -> list[str]:
    """The names of the adapters that `tracetune.record` switches on by itself.

    These are OpenAI's, where it is installed, and those of the frameworks that the program
    has imported: importing one that it does not use would cost seconds.

    Example:
        >>> "openai" in in_use()
        True
    """
    return [name for name in available() if name == "openai" or _package(name) in sys.modules]


def instrument(name: str) -> None:
    """Record the LM calls of one package, until `uninstrument` was called as often as this.

    Raises:
        InvalidInput: if there is no such adapter.
        MissingDependency: if its package is not installed.

    Example:
        >>> instrument("openai")
        >>> uninstrument("openai")
    """
    _check(name)
    if not _is_installed(name):
        raise MissingDependency(
            f'the adapter {name!r} needs its package; install it with pip install "tracetune[{name}]"'
        )
    with _lock:
        if not _depths.get(name):
            _undo[name] = import_module(_ADAPTERS[name]).install()
        _depths[name] = _depths.get(name, 0) + 1


def uninstrument(name: str) -> None:
    """Undo one `instrument`; without one, nothing.

    Raises:
        InvalidInput: if there is no such adapter.
    """
    _check(name)
    with _lock:
        if not _depths.get(name):
            return
        _depths[name] -= 1
        if not _depths[name]:
            _undo.pop(name)()


def _check(name: str) -> None:
    if name not in _ADAPTERS:
        raise InvalidInput(f"there is no adapter called {name!r}; there are: {', '.join(_ADAPTERS)}")


def _package(name: str) -> str:
    return _PACKAGES.get(name, name)


def _is_installed(name: str) -> bool:
    return find_spec(_package(name)) is not None
