"""One rollout from inside and from outside: its identity, its start and its end, and what is recorded of both.

A rollout's start is recorded when its program starts, so that the store can tell one whose
process died from one that ended.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import orjson
from opentelemetry import trace

from tracetune.errors import InvalidInput, RolloutClosed
from tracetune.tracer import names, session, sources
from tracetune.tracer.interrupts import is_interrupt
from tracetune.tracer.invocations import Executions
from tracetune.tracer.outcomes import error_type, status_of
from tracetune.tracer.processes import this_process
from tracetune.tracer.sampling import is_sampled
from tracetune.tracer.setting import Setting
from tracetune.types import Call, Example, Rollout

# As `invocations.ordinals_lock`: held across a fork, and re-entrant.
_lock = threading.RLock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

_CLOSING = ("ok", "error", "format_error", "timeout", "interrupted")


class RolloutHandle:
    """One rollout, from inside and from outside; safe to use from any thread.

    Attributes:
        id: its name in the store.
        example_id: the example's name; where none was given, known once its program starts.
        index: its 0-based place among the rollouts of its example.
        status: "ok" until it ends otherwise: "error", "format_error", "timeout" or "interrupted".
        error_type: the qualified name of the exception that ended it.
        output: what the program gave.
        calls: the LM calls that have ended, in that order; those of reward functions apart.
        setting: the run, split, step and policy that it was begun under.
        executions: numbers the executions of its modules.
        root: its program's span, once that has begun.
        has_started: whether its start has been recorded.
        is_sampled: whether anything of it is recorded.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        id: str,  # noqa: A002  a rollout's id is its id
        example_id: str | None = None,
        index: int = 0,
        ends_with_program: bool = False,
    ) -> None:
        self.id = id
        self.example_id = example_id
        self.index = index
        self.status = "ok"
        self.error_type: str | None = None
        self.output: Any = None
        self.calls: list[Call] = []
        self.setting = setting
        self.executions = Executions()
        self.root: trace.SpanContext | None = None
        self.has_started = False
        self.is_sampled = is_sampled(id, setting.sample)
        self._ends_with_program = ends_with_program
        self._generation = sources.generation
        self._program = ""
        self._reward: float | None = None
        self._output_json: str | None = None
        self._span_attributes: dict[str, Any] | None = None
        self._started_at = sources.now()
        self._ended_at: int | None = None
        self._has_outcome = False
        self._was_closed = False

    def close(self, status: str, error_type: str | None = None) -> None:
        """End the rollout from outside, after a timeout say; the first end stands.

        Its next LM call raises `RolloutClosed`, and spans that end later are marked.

        Args:
            status: "ok", "error", "format_error", "timeout" or "interrupted".
            error_type: the qualified name of an exception.

        Raises:
            InvalidInput: if there is no such status.
        """
        if status not in _CLOSING:
            raise InvalidInput(f"a rollout ends with status {', '.join(_CLOSING)}, not {status!r}")
        self._was_closed = True
        self._end(status, error_type)

    def as_rollout(self) -> Rollout:
        """The rollout as reward and credit functions receive it."""
        policy = self.setting.policy
        ended_at = self._ended_at if self._ended_at is not None else sources.now()
        return Rollout(
            id=self.id,
            example_id=self.example_id or "",
            run=self.setting.run,
            split=self.setting.split,
            step=self.setting.step,
            index=self.index,
            program=self._program,
            status=self.status,
            error_type=self.error_type,
            output=self.output,
            reward=self._reward,
            duration_ms=(ended_at - self._started_at) / 1e6,
            policy_version=policy.version if policy is not None else None,
            calls=tuple(self.calls),
        )

    def span_attributes(self) -> dict[str, Any]:
        """What every span of this rollout says of it; the caller may add to them."""
        if self._span_attributes is None:
            attributes = self.setting.span_attributes()
            attributes[names.ROLLOUT_ID] = self.id
            if self.example_id is not None:
                attributes[names.EXAMPLE_ID] = self.example_id
            self._span_attributes = attributes
        return self._span_attributes.copy()

    def claim(self, program: str, arguments: Mapping[str, Any]) -> bool:
        """Whether a program that begins now is the one that this is a rollout of: the first in it."""
        with _lock:
            if self._program:
                return False
            self._program = program
        if self.example_id is None:
            self.example_id = _example_id(arguments, self.id)
            self._span_attributes = None
        return True

    def start(self, input_json: str = "") -> None:
        """Record, once, that the rollout has begun; a rollout that sampling leaves out is counted instead."""
        with _lock:
            if self.has_started:
                return
            self.has_started = True
        self._started_at = sources.now()
        if not self.is_sampled:
            self._leave_out()
            return
        policy = self.setting.policy
        body = {
            "rollout_id": self.id,
            "run": self.setting.run,
            "split": self.setting.split,
            "step": self.setting.step,
            "index": self.index,
            "program": self._program,
            "example_id": self.example_id,
            "input": orjson.Fragment(str(input_json)) if input_json else None,
            "policy_version": policy.version if policy is not None else None,
            "pid": os.getpid(),
            "process": str(this_process()),
        }
        self._write(names.RECORD_ROLLOUT, body)

    def program_ended(self, error: BaseException | None, output: Any, output_json: str | None, ended_at: int) -> None:
        """The program gave a result, or raised; a rollout that was closed before keeps the status it has."""
        with _lock:
            if self._ended_at is not None or self._has_outcome:
                return
            self._has_outcome = True
            if self._ends_with_program:
                self._ended_at = ended_at
            self.status, self.output, self._output_json = status_of(error), output, output_json
            self.error_type = error_type(error) if error is not None else None

    def block_ended(self, error: BaseException | None) -> None:
        """The `rollout` block was left; what its program did counts for more than what came after it."""
        self.start()
        if self._has_outcome or error is None:
            self._end(self.status, self.error_type)
        else:
            self._end(status_of(error), error_type(error))

    def check_open(self) -> None:
        """Refuse an LM call of a rollout that was closed from outside.

        Raises:
            RolloutClosed: if it was.
        """
        if self._was_closed:
            raise RolloutClosed(
                f"rollout {self.id} was closed with status {self.status}; it can't call a model any more"
            )

    def is_late(self, call_kind: str = "call") -> bool:
        """Whether a span that ends now ends after its rollout; what a reward function calls never does."""
        return self._ended_at is not None and call_kind == "call"

    def scored(self, value: float) -> None:
        """Keep the reward for `as_rollout`."""
        self._reward = value

    def _end(self, status: str, error_type: str | None) -> None:
        with _lock:
            if self._ended_at is not None:
                return
            self._ended_at = sources.now()
            self.status, self.error_type = status, error_type
        output = orjson.Fragment(str(self._output_json)) if self._output_json else None
        self._write(
            names.RECORD_ROLLOUT_CLOSED,
            {"rollout_id": self.id, "status": status, "error_type": error_type, "output": output},
        )

    def _leave_out(self) -> None:
        recorder = self.setting.session or session.active
        if recorder is not None and self._generation == sources.generation:
            recorder.spool.count_unsampled()

    def _write(self, event_name: str, body: dict[str, Any]) -> None:
        recorder = self.setting.session or session.active
        # A forked child leaves its parent's rollouts to its parent.
        if recorder is not None and self.is_sampled and self._generation == sources.generation:
            recorder.spool.write_record(
                event_name, body, attributes={**self.setting.attributes(), names.ROLLOUT_ID: self.id}
            )


def _example_id(arguments: Mapping[str, Any], rollout_id: str) -> str:
    """The id that the same inputs have as an `Example`; one of its own where JSON can't express them."""
    try:
        return Example.of({"inputs": arguments}).id
    except BaseException as error:  # whatever a hostile argument raises while it is looked at
        if is_interrupt(error):
            raise
        return f"unserialisable-{rollout_id}"
