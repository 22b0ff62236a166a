"""Whether the garbage collector is at work here: on Python 3.11 that is no place to set a context variable.

There the collector may run in any allocation, also in one that setting a context variable
makes, and whatever it finalizes is run in the middle of that. Setting the same context's
variables once more then frees what is being copied. So what the collector ends (an
abandoned generator, say) is run in a copy of the context. From 3.12 on the collector
waits for the end of an instruction, and there is nothing to look out for.
"""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

# The thread in which the collector is at work.
_thread: int | None = None


def is_at_work() -> bool:
    """Whether this is run by the collector."""
    return _thread is not None and _thread == threading.get_ident()


def run_apart(function: Callable[..., Any], *args: Any) -> Any:
    """Run a function where context variables may be set, even if it is the collector that calls it."""
    if _thread is not None and is_at_work():
        return contextvars.copy_context().run(function, *args)
    return function(*args)


def watch() -> None:
    """From now on know when the collector is at work."""
    if sys.version_info < (3, 12) and _noted not in gc.callbacks:
        gc.callbacks.append(_noted)


def _noted(phase: str, _: dict[str, int]) -> None:
    global _thread
    _thread = threading.get_ident() if phase == "start" else None
