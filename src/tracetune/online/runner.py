"""Rollouts, many at a time: run a program on examples, close what takes too long, score the rest.

One event loop in a thread of its own starts every rollout and watches the clock. An
async program runs in that loop; a sync one gets a daemon thread, because a thread that
hangs can be left behind but not stopped: its rollout is closed, so that its next LM call
raises `RolloutClosed` and whatever it still traces is marked late.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tracetune import tracer
from tracetune.types import Example, Policy, Rollout, Score

T = TypeVar("T")
Reward = Callable[[Example, Any, Rollout], float | Score | Awaitable[float | Score]]


def as_program(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as a program: itself where it is decorated as one."""
    return function if tracer.is_program(function) else tracer.program(function)


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A rollout that should be made: which example, under which policy, and its place in the step."""

    example: Example
    index: int
    split: str
    step: int
    policy: Policy


@dataclass(slots=True)
class Failures:
    """What went wrong in a set of rollouts: counted, and the first of each kind kept to be shown."""

    programs: int = 0
    rewards: int = 0
    first_program: BaseException | None = None
    first_reward: BaseException | None = None

    def program(self, error: BaseException) -> None:
        """Count a rollout that failed."""
        self.programs += 1
        self.first_program = self.first_program or error

    def reward(self, error: BaseException) -> None:
        """Count a rollout that could not be scored."""
        self.rewards += 1
        self.first_reward = self.first_reward or error


@dataclass(slots=True)
class _Attempt:
    """A rollout under way, as the clock watcher and its thread both see it."""

    request: RolloutRequest
    handle: tracer.RolloutHandle | None = None
    output: Any = None
    error: BaseException | None = None


class RolloutRunner:
    """Runs one program, scored by one reward function.

    Args:
        program: called as `program(**example.inputs)`; sync or async.
        reward: called as `reward(example, output, rollout)` after the rollout has
            closed; sync or async. Its own LM calls are recorded with kind "score".
        max_concurrency: how many rollouts are under way at once.
        timeout: seconds that a rollout may take, and its reward after it.
    """

    def __init__(
        self, program: Callable[..., Any], reward: Reward, *, max_concurrency: int, timeout: float | None
    ) -> None:
        self._program = program
        self._reward = reward
        self._max_concurrency = max_concurrency
        self._timeout = timeout
        function = inspect.unwrap(program)
        self._is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        self._rollouts: set[asyncio.Task[Rollout]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tracetune-rollouts", daemon=True)
        self._thread.start()

    def run(
        self, requests: Sequence[RolloutRequest], on_done: Callable[[Rollout], None] | None = None
    ) -> tuple[list[Rollout], Failures]:
        """Make all the rollouts that are asked for; gives them in the order of the requests.

        Args:
            requests: the rollouts to make.
            on_done: called with each rollout as it ends, for a progress display.
        """
        failures = Failures()
        context = contextvars.copy_context()  # carries the recording's scope into the loop's thread
        future = asyncio.run_coroutine_threadsafe(self._all(requests, context, failures, on_done), self._loop)
        try:
            return future.result(), failures
        except BaseException:  # Ctrl-C reaches this thread only: nothing may go on behind its back
            future.cancel()
            raise

    def close(self) -> None:
        """End what is still under way and stop the loop; threads of rollouts that hang end with the process."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """End the rollouts, and only then what is under them: that would be an error of theirs."""
        await _cancel(self._rollouts)
        await _cancel(asyncio.all_tasks() - {asyncio.current_task()})

    async def _all(
        self,
        requests: Sequence[RolloutRequest],
        context: contextvars.Context,
        failures: Failures,
        on_done: Callable[[Rollout], None] | None,
    ) -> list[Rollout]:
        slots = asyncio.Semaphore(self._max_concurrency)

        async def one(request: RolloutRequest) -> Rollout:
            async with slots:
                result = await self._one(request, failures)
            if on_done is not None:
                on_done(result)
            return result

        tasks = [self._loop.create_task(one(request), context=context.copy()) for request in requests]
        for task in tasks:
            self._rollouts.add(task)
            task.add_done_callback(self._rollouts.discard)
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, request: RolloutRequest, failures: Failures) -> Rollout:
        attempt = _Attempt(request)
        work: asyncio.Future[None]
        if self._is_async:
            work = self._loop.create_task(self._execute_async(attempt))
        else:
            work = self._in_thread(lambda: self._execute(attempt))
        ended_as = "interrupted"  # what is true if this wait itself is cancelled
        try:
            done, _ = await asyncio.wait({work}, timeout=self._timeout)
            ended_as = "ended" if done else "timeout"
        finally:
            if ended_as != "ended":
                # Closed before it is cancelled, so that it is a timeout and not the error that cancelling raises in it.
                if attempt.handle is not None:
                    attempt.handle.close(ended_as)
                work.cancel()
        if attempt.handle is None:  # the deadline passed before the thread could begin
            return Rollout("", request.example.id, split=request.split, step=request.step, status="timeout")
        result = replace(attempt.handle.as_rollout(), output=attempt.output)
        if result.status != "ok":
            failures.program(attempt.error or TimeoutError(f"no end after {self._timeout} s"))
            return result
        return await self._scored(attempt.handle, request.example, result, failures)

    def _execute(self, attempt: _Attempt) -> None:
        try:
            with self._rollout(attempt):
                output = self._program(**attempt.request.example.inputs)
                attempt.output = list(output) if inspect.isgenerator(output) else output
        except BaseException as error:  # noqa: BLE001  a program that calls sys.exit() fails like any other
            attempt.error = error

    async def _execute_async(self, attempt: _Attempt) -> None:
        try:
            with self._rollout(attempt):
                output = self._program(**attempt.request.example.inputs)
                attempt.output = [item async for item in output] if inspect.isasyncgen(output) else await output
        except Exception as error:  # noqa: BLE001  whatever a program raises is a failed rollout
            attempt.error = error

    @contextmanager
    def _rollout(self, attempt: _Attempt) -> Iterator[None]:
        request = attempt.request
        with tracer.rollout(
            request.example.id, split=request.split, step=request.step, index=request.index, policy=request.policy
        ) as attempt.handle:
            yield

    async def _scored(
        self, handle: tracer.RolloutHandle, example: Example, result: Rollout, failures: Failures
    ) -> Rollout:
        try:
            async with asyncio.timeout(self._timeout):
                score = Score.of(await self._reward_of(handle, example, result))
        except Exception as error:  # noqa: BLE001  whatever a reward raises leaves the rollout unscored, and counted
            failures.reward(error)
            return result
        tracer.reward(score.value, rollout_id=handle.id, source="reward", feedback=score.feedback)
        for module, value in score.by_module.items():
            tracer.reward(value, rollout_id=handle.id, module=module, source="reward")
        return replace(result, reward=score.value)

    async def _reward_of(self, handle: tracer.RolloutHandle, example: Example, result: Rollout) -> object:
        if inspect.iscoroutinefunction(self._reward):
            with tracer.scoring(handle):
                return await self._reward(example, result.output, result)

        def score() -> object:
            with tracer.scoring(handle):
                return self._reward(example, result.output, result)

        return await self._in_thread(score)

    def _in_thread(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """What a function gives that runs in a daemon thread, in this task's context; cancelling leaves it behind."""
        outcome: asyncio.Future[T] = self._loop.create_future()
        context = contextvars.copy_context()

        def settle(method: Callable[[Any], None], value: Any) -> None:
            if not outcome.done():
                method(value)

        def work() -> None:
            try:
                value = context.run(function)
            except BaseException as error:  # noqa: BLE001  it is raised again where the outcome is awaited
                self._tell(settle, outcome.set_exception, error)
            else:
                self._tell(settle, outcome.set_result, value)

        threading.Thread(target=work, daemon=True).start()
        return outcome

    def _tell(self, settle: Callable[..., None], method: Callable[[Any], None], value: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle, method, value)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel those tasks, and give each a moment to say how it ended."""
    cancelled = set(tasks)
    for task in cancelled:
        task.cancel()
    if cancelled:
        await asyncio.wait(cancelled, timeout=1.0)
