"""The spool: append-only files beside the store, the one door by which anything is recorded.

Each process appends to a segment of its own (`open_segment`), renamed from `….open.jsonl`
to `….jsonl` when it is closed. A span or record is one `os.write` when it ends: no queue
and no thread, so nothing is dropped and `kill -9` loses nothing that was written.
"""

from __future__ import annotations

import atexit
import errno
import os
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from opentelemetry.sdk.trace import ReadableSpan

from tracetune.redaction import redact_document, redacted_json
from tracetune.tracer import encoding, names, sources
from tracetune.tracer.open_segment import QUIET_SECONDS, OpenSegment
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
        self._segment: OpenSegment | None = None
        self._seen_counts = (0, 0)  # of spans and records, when the segment was last seen
        self._next_look = 0.0
        self._is_written = False
        self._has_warned = self._has_warned_of_lock = False
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
            if self._segment is not None and time.monotonic() >= self._next_look:
                self._look_for_segment()
            segment = self._segment or self._open_segment()
            self._write(segment, line, spans, records)
        except OSError as error:
            if error.errno == errno.EBADF and self._segment is not None:
                self._was_closed_under_us()
                return self._append(line, spans, records)
            self._lost += spans + records
            self._complain(error)
            return False
        except BaseException:  # an interrupt, which may have come when all was written
            if not self._is_written:
                self._lost += spans + records
            raise
        if segment.size >= self._segment_bytes:
            self._begin_another()
        return True

    def _complain(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                f"the spool {self.folder} can't be written to ({error}); free the disk or mend the folder: "
                "what is recorded until then is lost, and counted"
            )

    def _write(self, segment: OpenSegment, data: bytes, spans: int, records: int) -> None:
        whole = rest = b"\n" + data if segment.is_torn else data
        length, start = len(whole), segment.size
        failure: BaseException | None = None
        try:
            while rest:
                rest = rest[os.write(segment.descriptor, rest) :]
        except BaseException as error:  # noqa: BLE001  raised below
            # A full disk may have taken a part, and an interrupt may come when all is written: the file says which.
            failure, state = error, segment.state()
            segment.size = state.st_size if state is not None else start
        else:
            segment.size = start + length
        # Nothing is called from here on, so no other interrupt comes in between.
        if segment.size >= start + length:
            segment.is_torn, self._is_written = False, True
            self._spans += spans
            self._records += records
        elif segment.size > start:
            segment.is_torn = True
        if failure is not None:
            raise failure

    def _look_for_segment(self) -> None:
        """Begin another segment if this one was taken or deleted, with what was written since it was last seen."""
        segment = self._segment
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        if segment is None:
            return
        state = segment.state()
        if state is None:
            self._was_closed_under_us()
            return
        segment.size = state.st_size
        if segment.has_its_name:
            segment.seen, self._seen_counts = segment.size, (self._spans, self._records)
            return
        self._segment = None
        self._write_again(segment.leave())

    def _write_again(self, unseen: bytes) -> None:
        """Write what was written to a file that has lost its name."""
        if not unseen:
            return
        try:
            self._write(self._segment or self._open_segment(), unseen, 0, 0)
        except OSError:
            written = self._spans + self._records
            self._spans, self._records = self._seen_counts
            self._lost += written - self._spans - self._records
            raise

    def _was_closed_under_us(self) -> None:
        """Leave a descriptor that is not ours any more: programs that become daemons close all they find.

        What was written stands in the file; the number may be another file's by now.
        """
        self._segment = None
        self._seen_counts = (self._spans, self._records)

    def _open_segment(self) -> OpenSegment:
        segment = self._segment = OpenSegment(self.folder)
        self._next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
        if segment.lock_refusal is not None and not self._has_warned_of_lock:
            self._has_warned_of_lock = True
            warn(
                f"the file system of {self.folder} refuses locks ({segment.lock_refusal}); everything is written all "
                "the same, but another machine or container takes a rollout that this process leaves without an end "
                f"for interrupted only {QUIET_SECONDS / 60:.0f} minutes after its last line: keep the store where "
                "there are locks"
            )
        return segment

    def _begin_another(self) -> None:
        """Begin another segment, then close the full one: who lists the folder always finds one that is open."""
        self._sync()
        full = self._segment
        if full is None or full.size < self._segment_bytes:
            return  # it was taken, and another begun
        try:
            self._open_segment()
        except OSError:
            self._segment = full  # it grows until there is room for another
        else:
            self._finish(full)

    def _close_segment(self) -> None:
        self._sync()
        while (segment := self._segment) is not None:  # a second one where the first was taken in this moment
            self._segment = None
            self._finish(segment)
        self._seen_counts = (self._spans, self._records)

    def _finish(self, segment: OpenSegment) -> None:
        """Close a segment that nothing more is written to."""
        try:
            try:
                segment.finish()
            except FileNotFoundError:  # taken or deleted since it was last looked for
                self._write_again(segment.leave())
        except OSError as error:
            self._complain(error)

    def _sync(self) -> None:
        if self._segment is not None:
            try:
                self._look_for_segment()
                if self._segment is not None:
                    self._segment.sync()
            except OSError as error:
                self._complain(error)

    def _leave_to_parent(self) -> None:
        """After a fork, in the child: the segment is the parent's, and so is a lock that one of its threads held."""
        if self._segment is not None:
            os.close(self._segment.descriptor)
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
