"""The names of runs: a new run takes one that nobody has, and a resumed one finds its own.

A run has a folder for its checkpoints from its first moment on, and whoever records it
holds a lock in that folder until the end: the system lets go of it whatever ends the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tracetune.errors import CheckpointError, InvalidInput, TracetuneWarning
from tracetune.grouping import Store
from tracetune.online.checkpoints import Checkpoints

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A run that trains on what others recorded has batches and no rollouts.
_USED = """
SELECT run, max(moment) AS last
FROM (SELECT run, started_at AS moment FROM rollouts UNION ALL SELECT run, recorded_at FROM batches)
WHERE run IS NOT NULL
GROUP BY run
"""
_LOCK = "recording.lock"

# The locks that this process holds.
_held: set[int] = set()


@contextmanager
def taken_run(run: str | None, path: Path, store: Store, *, resume: bool) -> Iterator[str]:
    """The name to record under; it is this process's while the block lasts.

    Raises:
        InvalidInput: if the name would mix two runs, is none, or is a run that another process records.
        CheckpointError: if there is nothing to resume.
    """
    if run is not None and not _RUN.fullmatch(run):
        raise InvalidInput(f"run {run!r} names a folder too: use letters, digits, '.', '_' and '-', not first a sign")
    used: dict[str, datetime] = {row["run"]: row["last"] for row in store.sql(_USED).rows()}
    name = _resumed(run, path, used) if resume else _new(run, path, used)
    with _locked(name, Checkpoints(path, name).folder):
        yield name


def _resumed(run: str | None, path: Path, used: dict[str, datetime]) -> str:
    """A run that has begun: one that was killed before its first checkpoint begins once more."""
    begun = Checkpoints.runs(path)
    if run is None and begun:
        return max(begun, key=lambda name: used.get(name) or _made_at(Checkpoints(path, name).folder))
    if run is None or run not in begun:
        raise CheckpointError(
            f"{path} has no {f'run {run!r}' if run else 'run'} to resume; start without resume, or name one of: "
            f"{', '.join(begun) or 'none'}"
        )
    return run


def _new(run: str | None, path: Path, used: dict[str, datetime]) -> str:
    def is_free(name: str) -> bool:
        # The folder is made here and now, so of two processes that begin at once only one gets the name.
        return name not in used and Checkpoints(path, name).reserve()

    if run is None:
        return next(name for name in _free_names() if is_free(name))
    if not is_free(run):
        raise InvalidInput(
            f"run {run!r} is already in {path} or its checkpoints; pass resume=True to go on, or another name"
        )
    return run


def _free_names() -> Iterator[str]:
    number = 1
    while True:
        yield f"run-{number}"
        number += 1


def _made_at(folder: Path) -> datetime:
    # The store's times are in UTC, and say no time zone.
    return datetime.fromtimestamp(folder.stat().st_mtime, UTC).replace(tzinfo=None)


@contextmanager
def _locked(name: str, folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _held.add(descriptor)
    try:
        _lock(name, descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(name: str, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
        raise InvalidInput(
            f"run {name!r} is being recorded by {holder}; wait until that process has ended, or record under another "
            "name"
        ) from None
    except OSError as error:
        warnings.warn(
            f"run {name!r} cannot be locked ({error}); see to it that no other process resumes it meanwhile",
            TracetuneWarning,
            stacklevel=6,
        )
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


def _leave_to_parent() -> None:
    """A forked child that outlives its parent must not keep its parent's runs."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
