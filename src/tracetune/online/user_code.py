"""Calls of user code that can be left behind: in a thread, or in an event loop in a thread.

A program or a reward may raise anything and may never return. Nothing here waits for one:
each call runs in a thread that is not the caller's, its outcome is a value, and the caller
hears of it through a queue. A thread cannot be stopped. A call that takes too long is left:
from then on its outcome counts for nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tracetune.tracer.outcomes import message_of

# The call that code runs in, tasks that its code has made included.
_call: contextvars.ContextVar[UserCall | None] = contextvars.ContextVar("tracetune-user-call", default=None)

# What a loop gives its tasks to end when it is closed, in seconds.
_CLOSING_TIME = 1.0


class UserCall:
    """One call of a user's function.

    Args:
        function: called once with this object; for an event loop it gives a coroutine.
        context: the context variables that it sees.
        ended: called with this object when the call has ended; from another thread, and never once it was left.

    Attributes:
        value: what the function gave.
        error: what it raised, of whatever type; None where it gave something.
        message: the error's message, asked for in the same thread because `__str__` is user code too.
        starts_by: when its clock starts at the latest, on the monotonic clock.
        began_at: when it has started; None before.
        loop: the event loop that it was given to, if any.
        task: of its event loop, once it has begun there.
        began: told when its clock has started.
        kill: ends the process that it runs in, if it has one.
    """

    def __init__(
        self, function: Callable[[UserCall], Any], context: contextvars.Context, ended: Callable[[UserCall], None]
    ) -> None:
        self.function = function
        self.context = context
        self.value: Any = None
        self.error: BaseException | None = None
        self.message = ""
        self.starts_by = time.monotonic()
        self.began_at: float | None = None
        self.loop: EventLoop | None = None
        self.began: Callable[[], None] | None = None
        self.kill: Callable[[], None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._ended = ended
        self._lock = threading.Lock()
        self._is_left = False

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._is_left

    def start_in_thread(self, *, begins_itself: bool = False) -> None:
        """Run it in a daemon thread of its own.

        Args:
            begins_itself: the function calls `begin` when it is ready.
        """
        try:
            threading.Thread(target=self._run, args=(begins_itself,), daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            self.end(error=error)

    def begin(self) -> bool:
        """Start its clock; False if it was left before it could begin, and must not begin any more."""
        with self._lock:
            if self._is_left:
                return False
            self.began_at = time.monotonic()
        if self.began is not None:
            self.began()
        return True

    def end(self, value: Any = None, error: BaseException | None = None) -> None:
        """Keep the outcome, and tell who waits."""
        self.value, self.error = value, error
        if error is not None:
            self.message = message_of(error)
        with self._lock:
            if self._is_left:
                return
            self._ended(self)

    def leave(self) -> bool:
        """Wait for it no longer; whether it had begun. One that had not will never begin."""
        with self._lock:
            self._is_left = True
            return self.began_at is not None

    def stop(self) -> None:
        """Ask what was left to stop: a task is cancelled, a process killed; a thread goes on."""
        if self.kill is not None:
            self.kill()
        if self.loop is not None and self.task is not None:
            self.loop.call(self.task.cancel)

    def _run(self, begins_itself: bool) -> None:
        if not begins_itself and not self.begin():
            return
        try:
            value = self.context.run(self.function, self)
        except BaseException as error:  # noqa: BLE001  whatever user code raises is a value
            self.end(error=error)
        else:
            self.end(value)

    async def run_in_loop(self) -> None:
        """Run it as a task of an event loop."""
        if self._is_left:
            return
        try:
            value = await self.function(self)
        except BaseException as error:  # noqa: BLE001  also SystemExit, which would end the loop
            self.end(error=error)
        else:
            self.end(value)


class EventLoop:
    """An event loop in a daemon thread, in which calls of user code share what belongs to a loop.

    User code can block it for good. Who waits finds out by a `call` that is not made, leaves
    the loop as it is and goes on with another.

    Args:
        is_shared: for any number of calls, rather than for one.
    """

    def __init__(self, *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(_task_of_call)
        self._loop.set_default_executor(_DaemonThreads())
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="tracetune-rollouts", daemon=True)
        self._thread.start()

    def start(self, call: UserCall) -> None:
        """Run a call as a task."""
        call.loop = self
        self.call(self._begin, call)

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function in the loop's thread, as soon as the loop gets to it."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(function, *args)

    def running(self) -> UserCall | None:
        """The call whose code the loop is executing at this moment."""
        task = asyncio.current_task(self._loop)
        return None if task is None else _calls.get(task)

    def place(self) -> str:
        """The line that its thread is executing."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        return "an unknown line" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def close(self) -> None:
        """Cancel what is under way and end the thread, as soon as the loop gets to it."""
        self.call(self._stop)

    def join(self, timeout: float) -> None:
        """Wait for the thread's end for so many seconds; a blocked one ends with the process."""
        self._thread.join(timeout)

    def _begin(self, call: UserCall) -> None:
        if call.begin():
            call.context.run(_call.set, call)
            call.task = self._loop.create_task(call.run_in_loop(), context=call.context)

    def _stop(self) -> None:
        self._is_closing = True
        self._loop.stop()

    def _run(self) -> None:
        while not (self._is_closing or self._loop.is_closed()):
            # A task of user code that raises SystemExit or KeyboardInterrupt ends this, and so does its `loop.stop()`.
            with suppress(BaseException):
                self._loop.run_forever()
        with suppress(BaseException):
            self._loop.run_until_complete(self._end_tasks())
        with suppress(BaseException):
            self._loop.close()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait([*tasks, self._loop.create_task(self._loop.shutdown_asyncgens())], timeout=_CLOSING_TIME)


# Which call a task belongs to; tasks that user code makes belong to the call that they were made in.
_calls: weakref.WeakKeyDictionary[asyncio.Task[Any], UserCall] = weakref.WeakKeyDictionary()


def _task_of_call(loop: asyncio.AbstractEventLoop, coroutine: Any, **settings: Any) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **settings)
    context = settings.get("context")
    call = _call.get() if context is None else context.get(_call)
    if call is not None:
        _calls[task] = call
    return task


class _DaemonThreads(ThreadPoolExecutor):
    """Runs what user code gives to `asyncio.to_thread` in daemon threads: the interpreter's end waits for a pool's."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  as a pool does it
                _settle(future.set_exception, error)
            else:
                _settle(future.set_result, result)

        if future.set_running_or_notify_cancel():
            threading.Thread(target=run, daemon=True).start()
        return future


def _settle(method: Callable[[Any], None], outcome: Any) -> None:
    with suppress(Exception):  # nobody waits for it any more
        method(outcome)
