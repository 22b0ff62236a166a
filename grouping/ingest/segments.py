"""The spool as ingest sees it: segments, how much of each may be read, and what is set aside.

A writer appends to `….open.jsonl`, holding an flock on it, and renames it to `….jsonl` when
it is done. A lock that is held says that the writer lives. A free one says nothing: locks
are refused by some file systems, and held by nobody between a container and its host. Then
the process in the segment's name is looked for; where it can't be seen from here, its
segment is left alone until it has been quiet for `QUIET_SECONDS`.

Nothing is deleted that was not ingested. A segment whose writer is gone for certain can't
grow any more. One that was merely quiet is renamed to `….taken.jsonl` first, which a writer
notices (`tracer.open_segment`), and deleted once it has been quiet again. Each is deleted
only if it is as long as what was read of it.

Only whole lines are read; the unfinished last line of a writer that may live waits, that of
a dead one is set aside.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

import orjson

from tracetune.files import make_file, mode_inside
from tracetune.redaction import redacted_json, redacted_text
from tracetune.tracer.open_segment import CLOSED_SUFFIX, OPEN_SUFFIX, QUIET_SECONDS
from tracetune.tracer.processes import Process

# Memory that is used anew for every chunk costs more than the reading; but each that is mapped keeps a file open.
_MAPPED_BYTES = 16 * 1024 * 1024
_MADV_POPULATE_READ = 22  # the mmap module of Python 3.11 does not name it
_TAKEN_SUFFIX = ".taken.jsonl"
_SUFFIXES = (OPEN_SUFFIX, _TAKEN_SUFFIX, CLOSED_SUFFIX)
_REJECTED = "rejected.jsonl"
# `<time>-<pid>-<random>`, and in newer ones `-<host>-<boot>-<space>-<started>`.
_NAME_FIELDS = 7
# Of the folder, where each shows other files than the one before it.
_LISTINGS = 5


class State(Enum):
    """What is known of a segment's writer."""

    LIVE = "it may go on writing"
    QUIET = "it can't be seen from here, and has written nothing for long"
    TAKEN = "it can't be seen from here, and its segment has been renamed"
    ENDED = "it writes no more"


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the spool.

    Attributes:
        name: its file name without suffixes, the same before and after it is closed.
        path: where it is now.
        state: what is known of its writer.
        size: bytes in it, when it was looked at.
        was_open: whether its writer had it open when the folder was listed.
    """

    name: str
    path: Path
    state: State
    size: int
    was_open: bool

    @property
    def pid(self) -> int | None:
        """The process that wrote it, as its name says."""
        parts = self.name.split("-")
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None

    @property
    def process(self) -> Process | None:
        """The identity of that process; older names have none."""
        return _process_of(self.name)

    @property
    def has_writer(self) -> bool:
        """Whether what its writer began may still be ended."""
        return self.was_open and self.state is not State.QUIET

    @property
    def waits(self) -> bool:
        """Whether something is to be done with it even if nothing in it is new."""
        return self.state in (State.QUIET, State.ENDED)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole lines of one segment, and where they stand in it.

    Attributes:
        start: the offset of the first byte.
        end: the offset after the last.
        text: the bytes between the two.
        mapped: the whole segment, where it is mapped.
    """

    segment: Segment
    start: int
    end: int
    text: memoryview
    mapped: mmap.mmap | None

    def let_go(self) -> None:
        """Give back the memory that the text is mapped to; it is mapped anew where it is looked at again."""
        if self.mapped is None:
            return
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE
        # A system that does not know this advice keeps it.
        with suppress(AttributeError, OSError, ValueError):
            self.mapped.madvise(mmap.MADV_DONTNEED, first, self.end - first)


def segments(folder: Path) -> list[Segment]:
    """The segments of a spool, oldest first."""
    found = []
    listed, opened = _listed(folder)
    for file in sorted(listed):
        suffix = next(suffix for suffix in _SUFFIXES if file.endswith(suffix))
        name, path = file.removesuffix(suffix), folder / file
        with suppress(FileNotFoundError):  # ingested by another process since it was listed
            try:
                found.append(_segment(name, path, suffix, was_open=name in opened))
            except FileNotFoundError:  # closed since it was listed, and so its writer lived then
                closed = path.with_name(name + CLOSED_SUFFIX)
                found.append(Segment(name, closed, State.ENDED, closed.stat().st_size, was_open=name in opened))
    return found


def _listed(folder: Path) -> tuple[set[str], set[str]]:
    """The files of a spool's segments, and the names of those that were open in any of a few listings.

    A writer opens its next segment before it closes the last one. Yet one listing can miss
    both, because a folder that is long is not listed in one moment.
    """
    listed: set[str] = set()
    opened: set[str] = set()
    for _ in range(_LISTINGS):
        before, listed = listed, _files(folder)
        opened |= {file.removesuffix(OPEN_SUFFIX) for file in listed if file.endswith(OPEN_SUFFIX)}
        if listed == before:
            break
    return listed, opened


def _files(folder: Path) -> set[str]:
    try:
        return {file for file in os.listdir(folder) if file.endswith(CLOSED_SUFFIX) and file != _REJECTED}
    except FileNotFoundError:  # nothing has been recorded
        return set()


def _segment(name: str, path: Path, suffix: str, *, was_open: bool) -> Segment:
    # The writer is looked for before the size is: what it adds in between is read next time.
    if suffix == CLOSED_SUFFIX:
        return Segment(name, path, State.ENDED, path.stat().st_size, was_open=was_open)
    state = _state(name, path, is_open=suffix == OPEN_SUFFIX)
    return Segment(name, path, state, path.stat().st_size, was_open=was_open and state is not State.ENDED)


def _state(name: str, path: Path, *, is_open: bool) -> State:
    if is_open and _is_locked(path):
        return State.LIVE
    unfinished = State.LIVE if is_open else State.TAKEN
    process, status = _process_of(name), path.stat()
    changed_at = max(status.st_mtime, status.st_ctime)  # the second is when it was renamed
    runs = process.runs if process is not None else None
    if runs:
        return unfinished
    if runs is False or (process is not None and process.ended_before_boot(changed_at)):
        return State.ENDED
    if _now_at(path.parent) - changed_at < QUIET_SECONDS:
        return unfinished
    return State.QUIET if is_open else State.ENDED


def _process_of(name: str) -> Process | None:
    fields = name.split("-")
    if len(fields) != _NAME_FIELDS:
        return None
    _, pid, _, host, boot, space, started = fields
    return Process.of(f"{host}-{boot}-{space}-{pid}-{started}")


def _now_at(folder: Path) -> float:
    """The time by the clock that the folder's files are stamped with: on a network, another machine's."""
    try:
        os.utime(folder)
        return folder.stat().st_mtime
    except OSError:
        return time.time()


def chunks(segment: Segment, start: int, chunk_bytes: int) -> Iterator[Chunk]:
    """The unread lines of a segment from `start` on, in chunks of about `chunk_bytes`.

    The last line of a segment whose writer is gone counts as whole, newline or not.
    """
    if start >= segment.size:
        return
    mapped: mmap.mmap | None = None
    with _opened(segment) as file:
        if segment.size < _MAPPED_BYTES:
            text: bytes | mmap.mmap = file.read(segment.size)
        else:
            text = mapped = mmap.mmap(file.fileno(), segment.size, access=mmap.ACCESS_READ)
    last = segment.size if segment.state is State.ENDED else text.rfind(b"\n", start) + 1
    while start < last:
        if mapped is not None:
            _read_ahead(mapped, start, min(start + chunk_bytes, last))
        end = text.rfind(b"\n", start, start + chunk_bytes) + 1 or text.find(b"\n", start) + 1 or last
        if start + chunk_bytes >= last:
            end = last
        yield Chunk(segment, start, end, memoryview(text)[start:end], mapped)
        start = end


def release(segment: Segment) -> None:
    """Delete a segment that has been ingested whole, or take it where its writer was merely quiet.

    It stays as it is if it has grown since it was read; somebody else may have been quicker.
    """
    with suppress(FileNotFoundError):
        if not segment.waits or segment.path.stat().st_size != segment.size:
            return
        if segment.state is State.QUIET:
            segment.path.rename(segment.path.with_name(segment.name + _TAKEN_SUFFIX))
        else:
            segment.path.unlink()


def set_aside(folder: Path, rejected: list[tuple[str, int, bytes, str]]) -> None:
    """Append unreadable lines to the spool's `rejected.jsonl`, each once, with its reason.

    Done before the transaction commits: after a crash in between, the lines come again
    and are found to be there.
    """
    path = folder / _REJECTED
    known = set()
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                entry = orjson.loads(line)
                known.add((entry["segment"], entry["offset"]))
            except (orjson.JSONDecodeError, KeyError):
                continue  # our own line, cut short by a crash: its entry is written again
    if not path.exists():
        make_file(path)
        path.chmod(mode_inside(folder))
    with path.open("ab") as file:
        for segment, offset, line, reason in rejected:
            if (segment, offset) in known:
                continue
            text = redacted_json(line.decode(errors="replace"))
            entry = {"segment": segment, "offset": offset, "reason": redacted_text(reason), "line": text}
            file.write(orjson.dumps(entry) + b"\n")
        file.flush()
        os.fsync(file.fileno())


def unread(found: Sequence[Segment], ingested: Mapping[str, int]) -> list[Segment]:
    """The segments that hold bytes not ingested yet, or that can be released."""
    return [segment for segment in found if segment.size > ingested.get(segment.name, 0) or segment.waits]


def _opened(segment: Segment) -> BinaryIO:
    try:
        return segment.path.open("rb")
    except FileNotFoundError:  # its writer closed it since it was listed
        return segment.path.with_name(segment.name + CLOSED_SUFFIX).open("rb")


def _read_ahead(text: mmap.mmap, start: int, end: int) -> None:
    """Have the system map those bytes at once, which is far quicker than page by page as they are touched."""
    if sys.platform == "linux":
        first = start - start % mmap.PAGESIZE
        # A system that does not know this advice maps them page by page.
        with suppress(OSError):
            text.madvise(_MADV_POPULATE_READ, first, end - first)


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # no locks here
    finally:
        os.close(descriptor)  # and with it a lock that was got
    return False
