"""What runs in the process of an isolated program or reward.

The process that trains starts this one, and sends it one job after another through a
connection. This process records into a segment of the spool of its own. Python's main
thread runs the user's code; the process ends when the one that started it is gone.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.trace import SpanContext, TraceFlags

from tracetune import tracer
from tracetune.calling import (
    as_program,
    call_async_program,
    call_async_reward,
    call_program,
    call_reward,
    is_async,
)
from tracetune.recording import record
from tracetune.tracer.capture import MESSAGES_LIMIT, Capture
from tracetune.tracer.outcomes import error_type, message_of
from tracetune.types import Example, Policy, Rollout

# How much longer than its timeout a call may run where nobody is left to end it, in seconds.
_GRACE = 60
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process is told first.

    Attributes:
        functions: module and qualified name of the functions that it runs, by "program" and "reward".
        parent: the process that it works for.
    """

    store: Path
    run: str
    sample: float
    redact: Callable[[str], str] | None
    functions: Mapping[str, tuple[str, str]]
    timeout: float | None
    parent: int


@dataclass(frozen=True, slots=True)
class Identity:
    """Which rollout a job belongs to.

    Attributes:
        root: trace id and span id of its program's span, once there is one.
    """

    rollout_id: str
    example_id: str
    split: str | None
    step: int | None
    index: int
    policy: Policy | None
    root: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ProgramJob:
    """Run the program."""

    identity: Identity
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RewardJob:
    """Score a rollout."""

    identity: Identity
    example: Example
    rollout: Rollout


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a job, or of the setup.

    Attributes:
        value: the output or the score, pickled: unpickling it runs user code.
        error: what was raised, pickled; None where nothing was, or where it cannot be pickled.
        error_type: its type's qualified name; empty where nothing was raised.
        message: what it says.
        rollout: as it ended, without its output, after a program.
        root: as in `Identity`.
        is_last: the process ends after this.
    """

    value: bytes = b""
    error: bytes | None = None
    error_type: str = ""
    message: str = ""
    rollout: Rollout | None = None
    root: tuple[int, int] | None = None
    is_last: bool = False


def span_context(root: tuple[int, int]) -> SpanContext:
    """The context of a span of another process, by trace id and span id."""
    return SpanContext(*root, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def serve(descriptor: int) -> None:
    """Do the jobs that come through a connection until it is closed."""
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    setup: Setup = pickle.loads(connection.recv_bytes())  # noqa: S301  from the process that started this one
    threading.Thread(target=_end_with_parent, args=(setup.parent,), daemon=True).start()
    try:
        functions = {kind: _found(*name) for kind, name in setup.functions.items()}
    except BaseException as error:  # noqa: BLE001  whatever a module raises while it is imported
        connection.send_bytes(pickle.dumps(_failed(error, is_last=True)))
        return
    with (
        record(setup.store, run=setup.run, sample=setup.sample, redact=setup.redact),
        asyncio.Runner() as runner,
    ):
        connection.send_bytes(pickle.dumps(Reply()))
        reply = Reply()
        while not reply.is_last:
            try:
                job = pickle.loads(connection.recv_bytes())  # noqa: S301  likewise
            except EOFError:
                return
            if setup.timeout is not None:
                # Ends this process even if user code keeps the interpreter's lock and nobody is left to kill it.
                signal.alarm(math.ceil(setup.timeout) + _GRACE)
            reply = _reply(job, functions, runner)
            signal.alarm(0)
            connection.send_bytes(pickle.dumps(reply))


def _reply(job: ProgramJob | RewardJob, functions: Mapping[str, Callable[..., Any]], runner: asyncio.Runner) -> Reply:
    if isinstance(job, RewardJob):
        try:
            return Reply(pickle.dumps(_score(job, functions["reward"], runner)))
        except BaseException as error:  # noqa: BLE001  whatever a reward raises is a value
            return _failed(error)
    identity = job.identity
    handle = _handle(identity)
    try:
        reply = Reply(_output(handle, as_program(functions["program"]), job.inputs, runner))
    except BaseException as error:  # noqa: BLE001  whatever a program raises is a value
        reply = _failed(error)
    root = None if handle.root is None else (handle.root.trace_id, handle.root.span_id)
    return replace(reply, rollout=_picklable(replace(handle.as_rollout(), output=None)), root=root)


def _output(
    handle: tracer.RolloutHandle, program: Callable[..., Any], inputs: Mapping[str, Any], runner: asyncio.Runner
) -> bytes:
    if is_async(program):
        output = runner.run(call_async_program(handle, program, inputs, made=pickle.dumps))
    else:
        output = call_program(handle, program, inputs, made=pickle.dumps)
    return bytes(output)


def _score(job: RewardJob, reward: Callable[..., Any], runner: asyncio.Runner) -> Any:
    identity = job.identity
    handle = _handle(identity)
    handle.has_started = True  # where its program ran
    if identity.root is not None:
        handle.root = span_context(identity.root)
    if is_async(reward):
        return runner.run(call_async_reward(handle, reward, job.example, job.rollout))
    return call_reward(handle, reward, job.example, job.rollout)


def _handle(identity: Identity) -> tracer.RolloutHandle:
    return tracer.new_rollout(
        identity.example_id,
        id=identity.rollout_id,
        split=identity.split,
        step=identity.step,
        index=identity.index,
        policy=identity.policy,
    )


def _failed(error: BaseException, *, is_last: bool = False) -> Reply:
    try:
        pickled: bytes | None = pickle.dumps(error)
        pickle.loads(pickled)  # type: ignore[arg-type]  # noqa: S301  what cannot be read back is of no use
    except BaseException:  # noqa: BLE001  it runs user code
        pickled = None
    # What a program does that wants to end its process may have undone what the next one needs.
    is_last = is_last or not isinstance(error, Exception)
    return Reply(error=pickled, error_type=error_type(error), message=message_of(error), is_last=is_last)


def _picklable(rollout: Rollout) -> Rollout:
    """The rollout, with messages that are not plain as they are captured."""
    try:
        pickle.loads(pickle.dumps(rollout))  # noqa: S301  as above
    except BaseException:  # noqa: BLE001  as above
        capture = Capture()
        calls = [
            replace(call, messages=orjson.loads(capture.json(list(call.messages), MESSAGES_LIMIT)[0]))
            for call in rollout.calls
        ]
        return replace(rollout, calls=tuple(calls))
    return rollout


def _found(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)
