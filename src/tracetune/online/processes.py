"""Processes for programs and rewards that are isolated: started, used again, and killed.

A thread cannot be stopped, and while code in it keeps the interpreter's lock no other
thread runs. A process can always be killed, and its end ends nothing else. It is started
anew and not forked: threads of torch do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from tracetune import tracer
from tracetune.errors import InvalidInput, IsolationError
from tracetune.isolated import ProgramJob, Reply, RewardJob, Setup, span_context
from tracetune.online.user_code import UserCall
from tracetune.tracer import session
from tracetune.tracer.scope import current_scope
from tracetune.types import Rollout

# What a process may take to import the functions that it runs, in seconds.
START_TIME = 120.0
# What processes without a job get to end by themselves, in seconds, all together.
_CLOSING_TIME = 2.0


def importable_name(kind: str, function: Callable[..., Any]) -> tuple[str, str]:
    """Module and qualified name of a function, by which another process finds it.

    Args:
        kind: "program" or "reward", for the message.
        function: the function.

    Raises:
        InvalidInput: if that is not how this function is found.

    Example:
        >>> importable_name("reward", os.path.join)
        ('posixpath', 'join')
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    found: Any = sys.modules.get(str(module))
    for part in str(name).split("."):
        found = getattr(found, part, None)
    if found is not function or module == "__main__":
        raise InvalidInput(
            f"the {kind} {name or function!r} cannot be isolated, because another process finds it by its name and "
            f"not in {module}; make it a function at the top of a module that can be imported"
        )
    return str(module), str(name)


@dataclass(frozen=True, slots=True)
class IsolatedOutput:
    """What a program gave in a process of its own.

    Attributes:
        value: its output.
        rollout: as it ended there, without the output.
        error: what it raised; None where it gave something.
        message: what the error says.
    """

    value: Any
    rollout: Rollout
    error: BaseException | None
    message: str


def run_program_in(
    processes: Processes, handle: tracer.RolloutHandle, job: ProgramJob, call: UserCall
) -> IsolatedOutput:
    """Run a program in a process of its own, and read here what it gave."""
    reply = processes.run(job, call)
    assert reply.rollout is not None  # as after every program
    if reply.root is not None:
        handle.root = span_context(reply.root)
    value = pickle.loads(reply.value) if reply.value else None  # noqa: S301  from a process of our own
    return IsolatedOutput(value, reply.rollout, _error(reply), reply.message)


def run_reward_in(processes: Processes, job: RewardJob, call: UserCall) -> Any:
    """Call a reward in a process of its own; raises here what it raised there."""
    reply = processes.run(job, call)
    error = _error(reply)
    if error is not None:
        raise error
    return pickle.loads(reply.value)  # noqa: S301  from a process of our own


def _error(reply: Reply) -> BaseException | None:
    if reply.error is not None:
        error: BaseException = pickle.loads(reply.error)  # noqa: S301  from a process of our own
        return error
    return IsolationError(f"{reply.error_type}: {reply.message}") if reply.error_type else None


class Processes:
    """The processes that run the isolated functions of one runner; each does one job at a time.

    Args:
        functions: the program, the reward or both, by kind.
        timeout: of one call, in seconds.

    Raises:
        InvalidInput: if another process cannot find a function.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], timeout: float | None) -> None:
        self._functions = {kind: importable_name(kind, function) for kind, function in functions.items()}
        if session.active is not None and session.active.redact is not None:
            importable_name("redact function", session.active.redact)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._is_closed = False

    def run(self, job: ProgramJob | RewardJob, call: UserCall) -> Reply:
        """What comes of a job, in a process of its own; called in the call's thread.

        Raises:
            IsolationError: if the process ends before it is done, or cannot be started.
        """
        data = pickle.dumps(job)
        process = self._taken(call)
        try:
            process.wait_until_ready()
            # A call that was left while the process started gets no job, and its reply is not read.
            reply = process.do(data) if call.begin() else Reply()
        except BaseException:
            self._forget(process)
            raise
        if reply.is_last:
            self._forget(process)
        else:
            self._give_back(process)
        return reply

    def close(self) -> None:
        """Kill what works, and end the rest."""
        with self._lock:
            self._is_closed = True
            processes, idle = list(self._all), set(self._idle)
            self._all.clear()
            self._idle.clear()
        deadline = time.monotonic() + _CLOSING_TIME
        for process in processes:
            if process in idle:
                process.dismiss()
            else:
                process.kill()
        for process in processes:
            process.wait(max(deadline - time.monotonic(), 0.0))

    def _taken(self, call: UserCall) -> _Process:
        with self._lock:
            if self._is_closed:
                raise IsolationError("the run has ended; no process is started any more")
            process = self._idle.pop() if self._idle else None
            if process is not None:
                process.call = call
        if process is None:
            process = _Process(self._setup())
            process.call = call
            with self._lock:
                self._all.add(process)
        call.kill = partial(self._kill, process, call)
        if call.is_left:
            call.kill()
        return process

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            process.call = None
            self._idle.append(process)

    def _forget(self, process: _Process) -> None:
        with self._lock:
            process.call = None
            self._all.discard(process)
        process.kill()
        process.wait(_CLOSING_TIME)

    def _kill(self, process: _Process, call: UserCall) -> None:
        with self._lock:
            if process.call is call:  # else it works for another one by now
                process.kill()

    def _setup(self) -> Setup:
        recorder = session.active
        assert recorder is not None  # a runner runs while something records
        setting = current_scope(recorder).setting
        return Setup(
            recorder.store,
            setting.run,
            setting.sample,
            recorder.redact,
            self._functions,
            self._timeout,
            os.getpid(),
        )


class _Process:
    """One process, and the connection to it."""

    def __init__(self, setup: Setup) -> None:
        self.call: UserCall | None = None
        self._is_ready = False
        self._connection: Connection
        self._connection, theirs = multiprocessing.Pipe()
        # The same modules are to be found, wherever this process has them from.
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; from tracetune.isolated import serve; serve({theirs.fileno()})"
        )
        with theirs:
            # A process group of its own: Ctrl-C is for this process alone, and what it starts can be killed with it.
            self._process = subprocess.Popen(  # noqa: S603  this interpreter, and a text of ours
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        with suppress(OSError):  # it has ended already, which is found out below
            self._connection.send_bytes(pickle.dumps(setup))

    def wait_until_ready(self) -> None:
        """Wait until it has imported what it runs.

        Raises:
            IsolationError: if it could not.
        """
        if not self._is_ready:
            reply = self._received()
            if reply.error_type:
                raise IsolationError(
                    f"the process of an isolated function could not import it ({reply.error_type}: {reply.message}); "
                    "import it by hand"
                )
            self._is_ready = True

    def do(self, job: bytes) -> Reply:
        """Do one job.

        Raises:
            IsolationError: if it ends before it is done.
        """
        with suppress(OSError):  # as above
            self._connection.send_bytes(job)
        return self._received()

    def kill(self) -> None:
        """End it at once, with the processes that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)

    def dismiss(self) -> None:
        """Let it end by itself: it waits for a job, and finds that there is none."""
        self._connection.close()

    def wait(self, timeout: float) -> None:
        """Wait for its end, and kill it if that takes too long."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_CLOSING_TIME)

    def _received(self) -> Reply:
        try:
            reply: Reply = pickle.loads(self._connection.recv_bytes())  # noqa: S301  from a process of our own
        except (EOFError, OSError) as error:
            self.wait(_CLOSING_TIME)  # user code may have closed the connection, and go on
            raise IsolationError(
                f"the process of an isolated function {_ended(self._process.returncode)}; no other rollout is concerned"
            ) from error
        return reply


def _ended(code: int | None) -> str:
    if code is None:
        return "cannot be killed"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"was ended by signal {-code}"
