"""A gate that many pass at once, and that whoever wants to be alone behind it can close; and a count of who is inside.

Both are for the tasks of an event loop on one side, and threads on the other.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

T = TypeVar("T")


class Gate:
    """Lets tasks of one event loop through, and threads have what is behind it to themselves.

    Example:
        >>> Gate().exclusively(lambda: "alone")
        'alone'
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def passed(self) -> AsyncIterator[None]:
        """Wait until the gate is open, and be counted as inside until the block ends."""
        while not self._enter():
            loop = asyncio.get_running_loop()
            opened: asyncio.Future[None] = loop.create_future()
            with self._changed:
                if self._closed:
                    self._waiting.append((loop, opened))
                else:
                    opened.set_result(None)
            await opened
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run in this thread while nobody is inside: who came before it is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closed)
            self._closed = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._inside)
            return work()
        finally:
            with self._changed:
                self._closed = False
                waiting, self._waiting = self._waiting, []
                self._changed.notify_all()
            for loop, opened in waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_let_in, opened)

    def _enter(self) -> bool:
        with self._changed:
            if not self._closed:
                self._inside += 1
            return not self._closed


def _let_in(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_result(None)


class Usage:
    """Who is used at the moment, by how many.

    Example:
        >>> usage = Usage()
        >>> with usage.of("policy-1"):
        ...     usage.wait_until_unused("policy-0")
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users: Counter[str] = Counter()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Use it until the block ends."""
        with self._changed:
            self._users[name] += 1
        try:
            yield
        finally:
            with self._changed:
                self._users[name] -= 1
                self._changed.notify_all()

    def wait_until_unused(self, name: str) -> None:
        """Wait until nobody uses it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._users[name])
