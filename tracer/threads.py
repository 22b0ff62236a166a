"""Carries the ambient context into threads, while a recording is on.

`contextvars` follow asyncio tasks by themselves but not threads. OpenTelemetry has an
instrumentation that does this too; it pins one exact version of the SDK on every user,
for the few lines below.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from opentelemetry import context as otel_context

_starting_worker = threading.local()
_undo: list[Callable[[], None]] = []


def carry_context() -> None:
    """From now on a thread begins, and a submitted function runs, in the context of its caller."""
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    def carrying_start(thread: threading.Thread) -> None:
        # A pool's worker outlives the call that started it: its context comes with each function instead.
        if not getattr(_starting_worker, "now", False):
            thread.run = _in_context(thread.run)  # type: ignore[method-assign]
        start(thread)

    def carrying_submit(
        executor: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        _starting_worker.now = True
        try:
            return submit(executor, _in_context(function), *args, **kwargs)
        finally:
            _starting_worker.now = False

    def undo() -> None:
        # Somebody who has patched the same method since would lose their patch.
        if threading.Thread.start is carrying_start:
            threading.Thread.start = start  # type: ignore[method-assign]
        if ThreadPoolExecutor.submit is carrying_submit:
            ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]

    threading.Thread.start = carrying_start  # type: ignore[method-assign,assignment]
    ThreadPoolExecutor.submit = carrying_submit  # type: ignore[method-assign,assignment]
    _undo.append(undo)


def stop_carrying() -> None:
    """Undo `carry_context`."""
    while _undo:
        _undo.pop()()


def _in_context(function: Callable[..., Any]) -> Callable[..., Any]:
    context = otel_context.get_current()

    def carried(*args: Any, **kwargs: Any) -> Any:
        token = otel_context.attach(context)
        try:
            return function(*args, **kwargs)
        finally:
            otel_context.detach(token)

    return carried
