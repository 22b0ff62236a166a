"""The spool as ingest sees it: segments, how much of each may be read, and what is set aside.

A writer appends to `<time>-<pid>-<random>.open.jsonl`, holding an flock on it, and renames
it to `….jsonl` when it is done. A lock that is free on an open segment says that its
writer is gone. Only whole lines are read; the unfinished last line of a living writer
waits, that of a dead one is set aside.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from tracetune.redaction import redacted_json, redacted_text

# Memory that is used anew for every chunk costs more than the reading; but each that is mapped keeps a file open.
_MAPPED_BYTES = 16 * 1024 * 1024
_MADV_POPULATE_READ = 22  # the mmap module of Python 3.11 does not name it
_OPEN_SUFFIX = ".open.jsonl"
_SUFFIX = ".jsonl"
_REJECTED = "rejected.jsonl"


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the spool.

    Attributes:
        name: its file name without suffixes, the same before and after it is closed.
        path: where it is now.
        live: whether a writer still holds it.
        size: bytes in it, when it was looked at.
    """

    name: str
    path: Path
    live: bool
    size: int

    @property
    def pid(self) -> int | None:
        """The process that wrote it, as its name says."""
        parts = self.name.split("-")
        return int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None


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
    for path in sorted(folder.glob("*" + _SUFFIX)):
        if path.name == _REJECTED:
            continue
        is_open = path.name.endswith(_OPEN_SUFFIX)
        try:
            # The lock is looked at before the size: what a writer adds in between is read next time.
            live = is_open and _is_locked(path)
            size = path.stat().st_size
        except FileNotFoundError:  # renamed or taken by another process since it was listed
            continue
        name = path.name.removesuffix(_OPEN_SUFFIX if is_open else _SUFFIX)
        found.append(Segment(name, path, live, size))
    return found


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
    last = segment.size if not segment.live else text.rfind(b"\n", start) + 1
    while start < last:
        if mapped is not None:
            _read_ahead(mapped, start, min(start + chunk_bytes, last))
        end = text.rfind(b"\n", start, start + chunk_bytes) + 1 or text.find(b"\n", start) + 1 or last
        if start + chunk_bytes >= last:
            end = last
        yield Chunk(segment, start, end, memoryview(text)[start:end], mapped)
        start = end


def remove(segment: Segment) -> None:
    """Delete a segment that has been ingested whole; somebody else may have been quicker."""
    segment.path.unlink(missing_ok=True)


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
    """The segments that hold bytes not ingested yet, or that can be removed."""
    return [segment for segment in found if segment.size > ingested.get(segment.name, 0) or not segment.live]


def _opened(segment: Segment) -> BinaryIO:
    try:
        return segment.path.open("rb")
    except FileNotFoundError:  # its writer closed it since it was listed
        return segment.path.with_name(segment.name + _SUFFIX).open("rb")


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
    finally:
        os.close(descriptor)  # and with it a lock that was got
    return False
