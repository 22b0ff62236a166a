"""Rollouts, many at a time: run a program on examples, close what takes too long, score the rest.

Who calls `run` watches the clock, and runs no user code: sync programs and rewards run in
a daemon thread each, async ones share one event loop in another thread. So nothing that
user code does can hold up the clock, except to keep the interpreter's lock; code that does
so is isolated in a process. What a thread or a task runs cannot be stopped from outside.
After its time its rollout is closed: its next LM call raises `RolloutClosed`, and whatever
it still traces is marked late.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tracetune import tracer
from tracetune.calling import as_program, call_async_program, call_async_reward, call_program, call_reward, is_async
from tracetune.isolated import Identity, ProgramJob, RewardJob
from tracetune.online.batches import Batch, Failures, RolloutRequest, RolloutWarning
from tracetune.online.processes import START_TIME, IsolatedOutput, Processes, run_program_in, run_reward_in
from tracetune.online.user_code import EventLoop, UserCall
from tracetune.tracer.outcomes import error_type
from tracetune.types import Example, Rollout, Score

Reward = Callable[[Example, Any, Rollout], float | Score | Awaitable[float | Score]]

# How long an event loop may take to answer before it counts as blocked, in seconds.
_ANSWER_TIME = 2.0
# What threads that were asked to end get to do so, in seconds, all together.
_JOINING_TIME = 2.0


@dataclass(slots=True)
class _Attempt:
    """A rollout under way: its program's call, then its reward's.

    Attributes:
        place: of its request among all.
        result: what the program made of it; None while the program runs.
        answer_until: when its event loop must have answered; None while it has not been asked.
        has_answered: its event loop has.
    """

    place: int
    request: RolloutRequest
    handle: tracer.RolloutHandle
    result: Rollout | None = None
    answer_until: float | None = None
    has_answered: bool = False


@dataclass(frozen=True, slots=True)
class _Answer:
    """What this call waited for has come: its event loop has answered, or its process is ready."""

    call: UserCall


class RolloutRunner:
    """Runs one program, scored by one reward function.

    Args:
        program: called as `program(**example.inputs)`; sync or async.
        reward: called as `reward(example, output, rollout)` after the rollout has
            closed; sync or async. Its own LM calls are recorded with kind "score".
        max_concurrency: how many rollouts are under way at once.
        timeout: seconds that a rollout may take, and its reward after it.
        isolate: "program", "reward" or both: which of them run in processes of their own.

    Raises:
        InvalidInput: if what is isolated cannot be found by another process.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        reward: Reward,
        *,
        max_concurrency: int,
        timeout: float | None,
        isolate: Collection[str] = (),
    ) -> None:
        self._isolate = isolate
        self._processes = None
        if isolate:
            functions = {"program": program, "reward": reward}
            self._processes = Processes({kind: functions[kind] for kind in isolate}, timeout)
        self._program = as_program(program)
        self._reward = reward
        self._max_concurrency = max_concurrency
        self._timeout = timeout
        self._events: queue.SimpleQueue[UserCall | _Answer | None] = queue.SimpleQueue()
        self._is_running = threading.Lock()
        self._under_way: dict[UserCall, _Attempt] = {}
        self._loops: set[EventLoop] = set()
        self._shared_loop: EventLoop | None = None
        self._shares_loop = True

    def run(
        self, requests: Sequence[RolloutRequest], on_done: Callable[[Rollout], None] | None = None
    ) -> tuple[list[Rollout], Failures]:
        """Make all the rollouts that are asked for; gives them in the order of the requests.

        Args:
            requests: the rollouts to make.
            on_done: called with each rollout as it ends, for a progress display.

        Raises:
            CancelledError: if the runner is closed meanwhile.
        """
        self._is_running.acquire()
        batch = Batch(requests, contextvars.copy_context(), on_done)
        try:
            while len(batch.results) < len(requests):
                while batch.waiting and len(self._under_way) < self._max_concurrency:
                    self._start_program(batch, batch.waiting.popleft())
                self._handle_events(batch)
                self._look_at_clock(batch)
        except BaseException:  # Ctrl-C reaches this thread only: nothing may go on behind its back
            self._interrupt()
            raise
        finally:
            self._is_running.release()
        return [batch.results[place] for place in range(len(requests))], batch.failures

    def close(self) -> None:
        """End what is under way, within seconds; what hangs in a thread ends with the process."""
        self._events.put(None)
        # Rollouts are closed as interrupted first; the error that stopping raises in them comes too late then.
        if self._is_running.acquire(timeout=_JOINING_TIME):
            self._is_running.release()
        deadline = time.monotonic() + _JOINING_TIME
        if self._processes is not None:
            self._processes.close()
        loops = list(self._loops)
        for loop in loops:
            loop.close()
        for loop in loops:
            loop.join(max(deadline - time.monotonic(), 0.0))

    # Programs

    def _start_program(self, batch: Batch, place: int) -> None:
        request = batch.requests[place]
        handle = tracer.new_rollout(
            request.example.id, split=request.split, step=request.step, index=request.index, policy=request.policy
        )
        attempt = _Attempt(place, request, handle)
        inputs = request.example.inputs
        if self._processes is not None and "program" in self._isolate:
            run = partial(run_program_in, self._processes, handle, ProgramJob(_identity(attempt), inputs))
            self._start_in_thread(batch, attempt, run, is_isolated=True)
        elif is_async(self._program):
            self._start_in_loop(
                batch,
                attempt,
                lambda call: call_async_program(handle, self._program, inputs, is_left=lambda: call.is_left),
            )
        else:
            self._start_in_thread(
                batch, attempt, lambda call: call_program(handle, self._program, inputs, is_left=lambda: call.is_left)
            )

    def _program_ended(self, batch: Batch, attempt: _Attempt, call: UserCall) -> None:
        result, output, error, message = None, call.value, call.error, call.message
        if type(output) is IsolatedOutput:  # a program's own output may raise when it is asked for its class
            result, error, message = output.rollout, output.error, output.message
            output = output.value
        elif error is not None and attempt.handle.status == "ok":
            # It never began, or its process has died: nobody has recorded the end.
            attempt.handle.start()
            attempt.handle.close("error", error_type(error))
        self._have_result(batch, attempt, replace(result or attempt.handle.as_rollout(), output=output), error, message)

    def _have_result(
        self, batch: Batch, attempt: _Attempt, result: Rollout, error: BaseException | None, message: str
    ) -> None:
        if result.status == "ok":
            self._start_reward(batch, attempt, result)
            return
        if error is None:
            error, message = RuntimeError(), f"the rollout was closed with status {result.status}"
        batch.failures.program(error, message)
        batch.finish(attempt.place, result)

    def _close(self, attempt: _Attempt, status: str) -> None:
        """Close a rollout whose program is still running."""
        if "program" in self._isolate:
            attempt.handle.start()  # the process may have ended before it recorded that
        attempt.handle.close(status)

    # Rewards

    def _start_reward(self, batch: Batch, attempt: _Attempt, result: Rollout) -> None:
        attempt.result = result
        handle, example = attempt.handle, attempt.request.example
        if self._processes is not None and "reward" in self._isolate:
            run = partial(run_reward_in, self._processes, RewardJob(_identity(attempt), example, result))
            self._start_in_thread(batch, attempt, run, is_isolated=True)
        elif is_async(self._reward):
            self._start_in_loop(batch, attempt, lambda _: call_async_reward(handle, self._reward, example, result))
        else:
            self._start_in_thread(batch, attempt, lambda _: call_reward(handle, self._reward, example, result))

    def _reward_ended(self, batch: Batch, attempt: _Attempt, call: UserCall) -> None:
        assert attempt.result is not None  # the program has ended
        if call.error is not None:
            batch.failures.reward(call.error, call.message)
            batch.finish(attempt.place, attempt.result)
            return
        score, rollout_id = call.value, attempt.handle.id
        tracer.reward(score.value, rollout_id=rollout_id, source="reward", feedback=score.feedback)
        for module, value in score.by_module.items():
            tracer.reward(value, rollout_id=rollout_id, module=module, source="reward")
        batch.finish(attempt.place, replace(attempt.result, reward=score.value))

    # Threads and loops

    def _start_in_thread(
        self, batch: Batch, attempt: _Attempt, function: Callable[[UserCall], Any], *, is_isolated: bool = False
    ) -> None:
        call = UserCall(function, batch.context.copy(), self._events.put)
        if is_isolated:
            call.starts_by += START_TIME
            call.began = partial(self._events.put, _Answer(call))  # whoever watches the clock looks at it again
        self._under_way[call] = attempt
        call.start_in_thread(begins_itself=is_isolated)

    def _start_in_loop(self, batch: Batch, attempt: _Attempt, function: Callable[[UserCall], Any]) -> None:
        call = UserCall(function, batch.context.copy(), self._events.put)
        attempt.answer_until, attempt.has_answered = None, False
        self._under_way[call] = attempt
        loop = self._shared_loop
        if loop is None:
            loop = EventLoop(is_shared=self._shares_loop)
            self._loops.add(loop)
            self._shared_loop = loop if loop.is_shared else None
        loop.start(call)

    def _end_own_loop(self, call: UserCall) -> None:
        if call.loop is not None and not call.loop.is_shared:
            call.loop.close()
            self._loops.discard(call.loop)

    # The clock

    def _handle_events(self, batch: Batch) -> None:
        """Wait for the next event or deadline, then handle all events that have come."""
        try:
            event = self._events.get(timeout=self._seconds_to_wait())
            while True:
                self._handle(batch, event)
                event = self._events.get_nowait()
        except queue.Empty:
            return

    def _handle(self, batch: Batch, event: UserCall | _Answer | None) -> None:
        if event is None:
            raise CancelledError("the runner was closed")
        if isinstance(event, _Answer):
            if event.call in self._under_way:
                self._under_way[event.call].has_answered = True
            return
        attempt = self._under_way.pop(event, None)
        if attempt is None:
            return  # of a run that was interrupted
        self._end_own_loop(event)
        if attempt.result is None:
            self._program_ended(batch, attempt, event)
        else:
            self._reward_ended(batch, attempt, event)

    def _seconds_to_wait(self) -> float | None:
        if self._timeout is None:
            return None
        moments = [
            self._deadline(call) if attempt.answer_until is None or attempt.has_answered else attempt.answer_until
            for call, attempt in self._under_way.items()
        ]
        return max(min(moments, default=0.0) - time.monotonic(), 0.0)

    def _deadline(self, call: UserCall) -> float:
        assert self._timeout is not None  # the caller looked
        return (call.starts_by if call.began_at is None else call.began_at) + self._timeout

    def _look_at_clock(self, batch: Batch) -> None:
        """Leave every call whose time is over."""
        if self._timeout is None:
            return
        for call, attempt in list(self._under_way.items()):
            now = time.monotonic()
            if call not in self._under_way:
                continue  # its loop was blocked, and it begins anew
            if now < self._deadline(call):
                attempt.answer_until, attempt.has_answered = None, False  # it had to wait before it began
            elif call.loop is None or attempt.has_answered:
                self._time_out(batch, call, attempt)
            elif attempt.answer_until is None:
                attempt.answer_until = now + _ANSWER_TIME
                call.loop.call(self._events.put, _Answer(call))
            elif now >= attempt.answer_until:
                self._leave_blocked_loop(batch, call, attempt, call.loop)

    def _time_out(self, batch: Batch, call: UserCall, attempt: _Attempt) -> None:
        error = TimeoutError(f"no end after {self._timeout:g} s")
        del self._under_way[call]
        has_begun = call.leave()
        if attempt.result is not None:
            call.stop()
            batch.failures.reward(error, str(error))
            batch.finish(attempt.place, attempt.result)
        elif has_begun:
            # Closed before it is stopped, so that it is a timeout and not the error that cancelling raises in it.
            self._close(attempt, "timeout")
            call.stop()
            self._have_result(batch, attempt, attempt.handle.as_rollout(), error, str(error))
        else:
            call.stop()
            request = attempt.request
            batch.failures.program(error, str(error))
            never_begun = Rollout("", request.example.id, split=request.split, step=request.step, status="timeout")
            batch.finish(attempt.place, never_begun)
        self._end_own_loop(call)

    def _leave_blocked_loop(self, batch: Batch, call: UserCall, attempt: _Attempt, loop: EventLoop) -> None:
        """Give up a loop that does not answer: begin anew what it held up, and go on in other loops."""
        blocking = loop.running()
        if loop is self._shared_loop:
            self._shared_loop, self._shares_loop = None, False
            warnings.warn(
                f"async code of a rollout or a reward has blocked the event loop of all rollouts, at {loop.place()}; "
                "await there, use asyncio.to_thread, or make the function a plain one: from now on each rollout has an "
                "event loop of its own, in which clients that rollouts share may not work",
                RolloutWarning,
                stacklevel=5,
            )
        for other, held_up in list(self._under_way.items()):
            if other.loop is loop and other.began_at is None:
                self._begin_anew(batch, other, held_up)
        if call not in self._under_way:
            return
        if blocking is None or blocking is call:
            self._time_out(batch, call, attempt)
        else:
            self._begin_anew(batch, call, attempt)

    def _begin_anew(self, batch: Batch, call: UserCall, attempt: _Attempt) -> None:
        """Make a rollout again, or its reward alone, that another one has held up: its own time was not its own."""
        del self._under_way[call]
        has_begun = call.leave()
        if attempt.result is not None:
            call.stop()
            self._start_reward(batch, attempt, attempt.result)
            return
        if has_begun:
            self._close(attempt, "interrupted")
            call.stop()
        batch.waiting.appendleft(attempt.place)

    def _interrupt(self) -> None:
        """End all that is under way."""
        while self._under_way:
            call, attempt = self._under_way.popitem()
            if call.leave() and attempt.result is None:
                self._close(attempt, "interrupted")
            call.stop()


def _identity(attempt: _Attempt) -> Identity:
    handle, request = attempt.handle, attempt.request
    root = None if handle.root is None else (handle.root.trace_id, handle.root.span_id)
    return Identity(
        handle.id, request.example.id, request.split, request.step, request.index, handle.setting.policy, root
    )
