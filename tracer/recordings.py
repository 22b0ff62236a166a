"""A recording: from its first block to its last, everything goes to one spool.

Blocks inside a recording, to the same store, share its session and change only what they
say of the calls inside them.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import SpanProcessor

from tracetune.errors import InvalidInput
from tracetune.tracer import collector, foreign, sampling, threads
from tracetune.tracer import session as sessions
from tracetune.tracer.capture import Redact
from tracetune.tracer.paths import store_path
from tracetune.tracer.scope import Scope, current_scope, set_ambient_scope, with_scope
from tracetune.tracer.session import Session
from tracetune.tracer.setting import Setting
from tracetune.tracer.spool import SpoolCounts
from tracetune.tracer.warn import warn
from tracetune.types import Policy

_lock = threading.RLock()
# As `invocations.ordinals_lock`: held across a fork.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Recording:
    """A block in which everything is recorded.

    Attributes:
        path: of the store.
        run: the name that calls inside the block are recorded under.
        spool: where they are written.
    """

    def __init__(self, session: Session, run: str) -> None:
        self.path = session.store
        self.run = run
        self.spool = session.spool

    @property
    def counts(self) -> SpoolCounts:
        """What this process has written so far."""
        return self.spool.counts

    def flush(self) -> SpoolCounts:
        """Force what was written onto the disk; gives the counts."""
        return self.spool.flush()


class StartedRecording(Recording):
    """A recording that goes on, in all threads, until it is stopped or the process ends.

    Attributes:
        path: of the store.
        run: the name that calls are recorded under.
        spool: where they are written.
    """

    def __init__(self, session: Session, run: str, undo: Callable[[], None]) -> None:
        super().__init__(session, run)
        self._session = session
        self._undo = undo
        self._is_on = True

    def stop(self) -> None:
        """Record nothing more; what was recorded is whole, and its segment closed. A second time does nothing."""
        with _lock:
            was_on, self._is_on = self._is_on, False
        if was_on:
            _leave(self._session)
            self._undo()


def start_recording(
    store: str | os.PathLike[str],
    *,
    run: str = "default",
    split: str | None = None,
    step: int | None = None,
    processors: Sequence[SpanProcessor] = (),
    redact: Redact | None = None,
    sample: float | None = None,
    undo: Callable[[], None] = lambda: None,
) -> StartedRecording:
    """Record from now on, in every thread of this process and in those that it forks.

    Args:
        store: path of the DuckDB file; it need not exist.
        run: the name that rollouts are recorded under.
        split: "train", "val" or None.
        step: the training step that makes the rollouts.
        processors: span processors that also receive every span.
        redact: given every captured text, gives the text to keep.
        sample: the fraction of rollouts to record, each as a whole or not at all.
        undo: is called when the recording is stopped.

    Raises:
        InvalidInput: if the store is no path, the sample no fraction, or this process is recording already.
    """
    path = store_path(store)
    fraction = 1.0 if sample is None else sampling.checked(sample)
    with _lock:
        if (other := sessions.active) is not None:
            raise InvalidInput(
                f"this process is already recording to {other.store}; stop that recording first, or use record for a "
                "block with a run of its own"
            )
        session = _enter(path, processors, redact)
        # The scope of every context that has none: there is no block whose context could carry it.
        set_ambient_scope(Scope(Setting(session, run, split, step, None, fraction)))
    return StartedRecording(session, run, undo)


def warn_if_dropped(end: GeneratorExit, store: str | os.PathLike[str]) -> None:
    """Warn where a recording ends because nobody holds it, and not because its block was left."""
    # What leaves a block comes with its way there; the garbage collector throws into the generator alone.
    is_dropped = end.__traceback__ is not None and end.__traceback__.tb_next is None
    if is_dropped and not sys.is_finalizing():
        warn(
            f"the recording to {store} ends here, because the object that record gave was dropped; use it in a with "
            "statement, or start_recording in a service, and keep what that gives"
        )


@contextmanager
def recording(
    store: str | os.PathLike[str],
    *,
    run: str = "default",
    split: str | None = None,
    step: int | None = None,
    policy: Policy | None = None,
    processors: Sequence[SpanProcessor] = (),
    redact: Redact | None = None,
    sample: float | None = None,
) -> Iterator[Recording]:
    """Record decorated functions and LM calls to the spool beside a store.

    Inside another recording to the same store, only run, split, step, policy and sample change.

    Args:
        store: path of the DuckDB file; it need not exist.
        run: the name that rollouts are recorded under.
        split: "train", "val" or None.
        step: the training step that makes the rollouts.
        policy: what `policy` gives inside; by default the same as outside.
        processors: span processors that also receive every span.
        redact: given every captured text, gives the text to keep.
        sample: the fraction of rollouts to record, each as a whole or not at all; by
            default the same as outside, where it is all of them.

    Raises:
        InvalidInput: if the store is no path, the sample no fraction, or another one is being recorded to, or a
            recording inside another asks for processors or a redaction of its own.

    Example:
        >>> with recording("traces.duckdb", run="try-1") as recorded:  # doctest: +SKIP
        ...     find("…")
    """
    path = store_path(store)
    fraction = None if sample is None else sampling.checked(sample)
    session = _enter(path, processors, redact)
    try:
        outer = current_scope(session)
        setting = Setting(
            session,
            run,
            split,
            step,
            outer.setting.policy if policy is None else policy,
            outer.setting.sample if fraction is None else fraction,
        )
        scope = Scope(setting, outer.rollout, outer.executions, outer.execution, outer.lm_call, outer.call_kind)
        if session.depth == 1:
            set_ambient_scope(scope)  # threads that nothing carried a scope to record under the outermost block's
        token = otel_context.attach(with_scope(scope))
        try:
            yield Recording(session, run)
        except GeneratorExit as end:
            warn_if_dropped(end, store)
            raise
        finally:
            otel_context.detach(token)
    finally:
        _leave(session)


def _enter(store: Path, processors: Sequence[SpanProcessor], redact: Redact | None) -> Session:
    with _lock:
        session = sessions.active
        if session is None:
            session = Session(store, processors, redact)
            collector.watch()
            threads.carry_context()
            foreign.copy_to(session)
            set_ambient_scope(Scope(Setting(session)))
            sessions.active = session
        elif session.store != store:
            raise InvalidInput(
                f"this process is already recording to {session.store}; leave that block before recording to {store}"
            )
        elif processors or redact is not None:
            raise InvalidInput(
                f"a recording to {store} is already on; give processors and redact to the outermost block"
            )
        session.depth += 1
        return session


def _leave(session: Session) -> None:
    with _lock:
        session.depth -= 1
        if session.depth:
            return
        sessions.active = None
        set_ambient_scope(None)
        threads.stop_carrying()
        foreign.stop_copying()
        session.spool.close()
    session.flush_processors()
