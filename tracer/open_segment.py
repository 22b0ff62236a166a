"""An open segment: the file that a process appends to, under the name that readers look for.

The name says which process writes, and the writer holds a `flock` on the file, so a reader
can tell a live writer from a dead one. A reader may still be wrong about a writer. So it
takes a segment by renaming it, and reads it once more after that. The writer looks from
time to time whether the name still leads to its file; where it does not, whatever was
written since it last did goes into another segment. So each line is read after the
renaming, or written again; one that is both is known by its id.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path

from tracetune.errors import UnsupportedSystem
from tracetune.files import FILE_MODE, make_folder, mode_inside
from tracetune.tracer.processes import this_process

try:
    import fcntl
except ModuleNotFoundError as error:
    raise UnsupportedSystem(
        "tracetune records on Linux and macOS, whose file locks it needs; on Windows, run it inside WSL"
    ) from error

OPEN_SUFFIX = ".open.jsonl"
CLOSED_SUFFIX = ".jsonl"
# A segment whose writer is elsewhere, or can't be told from here, is left alone until nothing was
# written to it for so long: a network folder shows another machine's lines late, and clocks differ.
QUIET_SECONDS = 600.0


class OpenSegment:
    """One process's file in the spool's folder, which is made where it is missing.

    Attributes:
        path: the name that it has while it is open.
        descriptor: of the file.
        size: bytes in it.
        seen: bytes in it when its name last led to it.
        is_torn: whether its last line was cut short.
        is_synced: whether the name is on the disk.
        lock_refusal: why the file system gave no lock; None where it gave one.

    Raises:
        OSError: if the file cannot be made.
    """

    __slots__ = ("_identity", "descriptor", "is_synced", "is_torn", "lock_refusal", "path", "seen", "size")

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        process = this_process()
        stem = (
            f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{process.pid}-{os.urandom(4).hex()}"
            f"-{process.host}-{process.boot}-{process.space}-{process.started}"
        )
        # Locked before it gets the name that readers look for: they never see a live segment without its lock.
        nascent, self.path = folder / f"{stem}.new", folder / f"{stem}{OPEN_SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self.descriptor = os.open(nascent, flags, FILE_MODE)
        try:
            # A team that shares the folder shares what is in it, whatever the umask.
            if (mode := mode_inside(folder)) != FILE_MODE:
                os.fchmod(self.descriptor, mode)
            self.lock_refusal = self._lock()
            state = os.fstat(self.descriptor)
            nascent.rename(self.path)
        except OSError:
            os.close(self.descriptor)
            with contextlib.suppress(OSError):
                nascent.unlink()
            raise
        self._identity = (state.st_dev, state.st_ino)
        self.size = self.seen = 0
        self.is_torn = self.is_synced = False

    def state(self) -> os.stat_result | None:
        """What the file system says of the file; None if the descriptor is not its any more."""
        try:
            state = os.fstat(self.descriptor)
        except OSError:
            return None
        return state if (state.st_dev, state.st_ino) == self._identity else None

    @property
    def has_its_name(self) -> bool:
        """Whether the name still leads to the file."""
        try:
            state = os.stat(self.path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # nothing is known of it
        return (state.st_dev, state.st_ino) == self._identity

    def leave(self) -> bytes:
        """Close the file, whose name is gone; gives what was written since it was last seen."""
        try:
            return os.pread(self.descriptor, self.size - self.seen, self.seen)
        finally:
            os.close(self.descriptor)

    def sync(self) -> None:
        """Force the file onto the disk, and its name: a new file survives a power cut only with that."""
        os.fsync(self.descriptor)
        if not self.is_synced:
            descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.is_synced = True

    def finish(self) -> None:
        """Give the file its final name, then close it.

        Raises:
            FileNotFoundError: if the name is gone; the file is open then, and may hold what nobody has read.
            OSError: if it cannot be renamed; it is closed, and read all the same once the process is gone.
        """
        try:
            self.path.rename(self.path.with_name(self.path.name.removesuffix(OPEN_SUFFIX) + CLOSED_SUFFIX))
        except FileNotFoundError:
            raise
        except OSError:
            os.close(self.descriptor)
            raise
        os.close(self.descriptor)

    def _lock(self) -> OSError | None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error
        return None
