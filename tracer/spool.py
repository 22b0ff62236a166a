"""The spool: append-only files beside the store, the one door by which anything is recorded.

Each process appends to a segment of its own, `<utc time>-<pid>-<random>.open.jsonl`,
renamed to `….jsonl` when it is closed. The writer holds a `flock` on its open segment,
so a reader can tell a live writer from a dead one. A span or record is one `os.write`
when it ends: no queue and no thread, so nothing is dropped and `kill -9` loses nothing
that was written.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.sdk.trace import ReadableSpan

from tracetune.redaction import redact_document, redacted_json
from tracetune.tracer import encoding, names, sources
from tracetune.tracer.warn import warn

SEGMENT_BYTES = 64 * 1024 * 1024

_SECONDS_BETWEEN_LOOKS = 0.05

_spools: weakref.WeakSet[Spool] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class SpoolCounts:
    """What one process wrote to its spool.

    Attributes:
        spans: spans written.
        records: log records written.
        lost: spans and records that the file system did not take.
        unsampled: rollouts that sampling left out.
    """

    spans: int = 0
    records: int = 0
    lost: int = 0
    unsampled: int = 0


class Spool:
    """One process's end of a spool folder; safe to use from any thread and after a fork.

    The folder and the segment are made at the first write. Writing never raises: what
    the file system refuses is counted as lost, and warned of once.

    Args:
        folder: where the segments stand, by convention `<store path>.spool`.
        segment_bytes: a segment that has grown beyond this is closed and a new one begun.

    Example:
        >>> spool = Spool("traces.duckdb.spool")
        >>> spool.write_record(names.RECORD_JOB, {"job_id": "1", "status": "queued"})  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str], *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = Path(folder).absolute()  # the program may change its working directory
        self._segment_bytes = segment_bytes
        self._begin()
        _spools.add(self)

    def _begin(self) -> None:
        # Re-entrant: the garbage collector may end an abandoned generator, and so its span, in the middle of a write.
        self._lock = threading.RLock()
        self._descriptor = -1
        self._segment: Path | None = None
        self._size = 0
        self._seen = 0
        self._seen_counts = (0, 0)  # of spans and records, when the segment was last seen
        self._identity = (0, 0)
        self._has_synced_folder = False
        self._next_look = 0.0
        self._is_torn = self._is_written = False
        self._has_warned = False
        self._spans = 0
        self._records = 0
        self._lost = 0
        self._unsampled = 0

    @property
    def counts(self) -> SpoolCounts:
        """What this process has written so far."""
        return SpoolCounts(self._spans, self._records, self._lost, self._unsampled)

    def write_span(self, span: ReadableSpan) -> None:
        """Append one ended span."""
        line = encoding.span_line(span)
        with self._lock:
            self._append(line, 1, 0)

    def write_record(
        self, event_name: str, body: Mapping[str, Any], *, attributes: Mapping[str, Any] | None = None
    ) -> str:
        """Append one log record.

        Args:
            event_name: one of `names.RECORD_*`.
            body: what JSON can express.
            attributes: scope attributes (`names.RUN` and so on); those that are None are left out.

        Returns:
            The record's id.
        """
        record_id = sources.new_id()
        known = {name: value for name, value in (attributes or {}).items() if value is not None}
        line = encoding.record_line(event_name, body, {names.RECORD_ID: record_id, **known}, sources.now())
        with self._lock:
            self._append(line, 0, 1)
        return record_id

    def write_document(self, line: bytes, *, spans: int, records: int) -> bool:
        """Append one OTLP/JSON document of somebody else's, newline included, without the secrets in it.

        Args:
            line: a whole document on one line; one without secrets is written byte for byte.
            spans: how many spans it holds.
            records: how many log records it holds.

        Returns:
            Whether it was written: who sent it may then forget it.
        """
        line = _without_secrets(line)
        with self._lock:
            return self._append(line, spans, records)

    def count_unsampled(self) -> None:
        """One more rollout is left out."""
        with self._lock:
            self._unsampled += 1

    def flush(self) -> SpoolCounts:
        """Force what was written onto the disk, and give what stands there."""
        with self._lock:
            self._sync()
            return self.counts

    def close(self) -> None:
        """Close the segment and give it its final name; a later write begins another."""
        with self._lock:
            self._close_segment()

    def _append(self, line: bytes, spans: int, records: int) -> bool:
        """Write one whole line, and give whether it was; the caller holds the lock."""
        self._is_written = False
        try:
            if self._descriptor >= 0 and time.monotonic() >= self._next_look:
                self._look_for_segment()
            if self._descriptor < 0:
                self._open_segment()
            self._write(line, spans, records)
        except OSError as error:
            if error.errno == errno.EBADF and self._descriptor >= 0:
                self._was_closed_under_us()
                return self._append(line, spans, records)
            self._lost += spans + records
            self._complain(error)
            return False
        except BaseException:  # an interrupt, which may have come when all was written
            if not self._is_written:
                self._lost += spans + records
            raise
        if self._size >= self._segment_bytes:
            self._close_segment()
        return True

    def _complain(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"the spool {self.folder} can't be written to ({error}); free the disk or mend the folder: "
                "what is recorded until then is lost, and counted"
            )

    def _write(self, data: bytes, spans: int, records: int) -> None:
        whole = rest = b"\n" + data if self._is_torn else data
        length, start = len(whole), self._size
        failure: BaseException | None = None
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException as error:  # noqa: BLE001  raised below
            # A full disk may have taken a part, and an interrupt may come when all is written: the file says which.
            failure, state = error, self._state()
            self._size = state.st_size if state is not None else start
        else:
            self._size = start + length
        # Nothing is called from here on, so no other interrupt comes in between.
        if self._size >= start + length:
            self._is_torn, self._is_written = False, True
            self._spans += spans
            self._records += records
        elif self._size > start:
            self._is_torn = True
        if failure is not None:
            raise failure

    def _look_for_segment(self) -> None:
        """Begin another segment if this one was deleted, with what was written since it was last seen.

        A deleted file goes on taking what is written to it, but nobody else will ever read that.
        """
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        state = self._state()
        if state is None:
            self._was_closed_under_us()
            return
        if state.st_nlink:
            self._seen, self._seen_counts = state.st_size, (self._spans, self._records)
            return
        unseen = os.pread(self._descriptor, state.st_size - self._seen, self._seen)
        self._forget_segment()
        if not unseen:
            return
        try:
            self._open_segment()
            self._write(unseen, 0, 0)
        except OSError:
            written = self._spans + self._records
            self._spans, self._records = self._seen_counts
            self._lost += written - self._spans - self._records
            raise

    def _state(self) -> os.stat_result | None:
        """What the file system says of the open segment; None if the descriptor is not its any more."""
        try:
            state = os.fstat(self._descriptor)
        except OSError:
            return None
        return state if (state.st_dev, state.st_ino) == self._identity else None

    def _was_closed_under_us(self) -> None:
        """Leave a descriptor that is not ours any more: programs that become daemons close all they find.

        What was written stands in the file; the number may be another file's by now.
        """
        self._descriptor, self._segment = -1, None
        self._seen_counts = (self._spans, self._records)

    def _open_segment(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}-{os.urandom(4).hex()}"
        # Locked before it gets the name that readers look for: they never see a live segment without its lock.
        nascent, segment = self.folder / f"{stem}.new", self.folder / f"{stem}.open.jsonl"
        descriptor = os.open(nascent, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            nascent.rename(segment)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                nascent.unlink()
            raise
        state = os.fstat(descriptor)
        self._identity = (state.st_dev, state.st_ino)
        self._descriptor, self._segment, self._size, self._is_torn = descriptor, segment, 0, False
        self._seen, self._next_look = 0, time.monotonic() + _SECONDS_BETWEEN_LOOKS
        self._has_synced_folder = False

    def _close_segment(self) -> None:
        self._sync()
        segment = self._segment
        if segment is None:
            return
        try:
            segment.rename(segment.with_name(segment.name.removesuffix(".open.jsonl") + ".jsonl"))
        except OSError as error:
            self._complain(error)  # unlocked, it will be taken for a dead writer's, and read all the same
        self._forget_segment()
        self._seen_counts = (self._spans, self._records)

    def _forget_segment(self) -> None:
        os.close(self._descriptor)
        self._descriptor, self._segment = -1, None

    def _sync(self) -> None:
        if self._descriptor >= 0:
            try:
                self._look_for_segment()
                if self._descriptor >= 0:
                    os.fsync(self._descriptor)
                    self._sync_folder()
            except OSError as error:
                self._complain(error)

    def _sync_folder(self) -> None:
        """A new file survives a power cut only once its name is on the disk as well."""
        if not self._has_synced_folder:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._has_synced_folder = True

    def _leave_to_parent(self) -> None:
        """After a fork, in the child: the segment is the parent's, and so is a lock that one of its threads held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._begin()


def _without_secrets(line: bytes) -> bytes:
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:  # the store will set it aside, without its secrets
        return redacted_json(line.decode(errors="replace")).encode(errors="replace")
    return orjson.dumps(document) + b"\n" if redact_document(document, names.REDACTED) else line


def _leave_all_to_parent() -> None:
    for spool in list(_spools):
        spool._leave_to_parent()


def _close_all() -> None:
    for spool in list(_spools):
        spool.close()


os.register_at_fork(after_in_child=_leave_all_to_parent)
# For what was written outside any block that closes its spool: by a thread that was late, or in a forked child.
atexit.register(_close_all)
