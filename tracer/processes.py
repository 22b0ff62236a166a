"""Which process writes a segment, and whether it still runs: locks alone cannot tell.

A lock can be refused, or be granted to two at once: between a host and a container, or two
hosts that share a folder. So a process has an identity that is in the names of its
segments. A process id means something only in one boot of one kernel and in one namespace
of process ids, and only until the id is used again, so all of these are part of it. Where
the system does not tell them (macOS has no `/proc`), less is known, and a reader waits.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

_UNKNOWN = "x"
_FIELDS = 5
_HAS_PROC = Path("/proc/self").exists()


@dataclass(frozen=True, slots=True)
class Process:
    """The identity of a process; a field that the system does not tell is "x".

    Attributes:
        host: a hash of the machine's name and id.
        boot: the beginning of the id of the kernel's boot.
        space: the namespace that the process id belongs to: a container has its own.
        pid: the process id.
        started: when the process began, in clock ticks since the boot.
    """

    host: str
    boot: str
    space: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.host}-{self.boot}-{self.space}-{self.pid}-{self.started}"

    @classmethod
    def of(cls, text: str) -> Process | None:
        """The process that a text names, as `str` gave it; None if it names none.

        Example:
            >>> Process.of("6f1ed002-9a8b7c6d-4026531836-4121-88301").pid
            4121
        """
        fields = text.split("-")
        if len(fields) != _FIELDS or not fields[3].isdigit():
            return None
        return cls(fields[0], fields[1], fields[2], int(fields[3]), fields[4])

    @property
    def runs(self) -> bool | None:
        """Whether it still runs; None where that can't be told from here."""
        if not self._is_seen_from_here:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # another user's, and there
        status = _status(self.pid)
        if status is None or self.started == _UNKNOWN:
            return None
        return status.runs and status.started == self.started

    def ended_before_boot(self, changed_at: float) -> bool:
        """Whether it ran on this machine before the machine was started anew.

        Args:
            changed_at: when its file last changed. Two machines can have one name and one id, copies
                of one image: a file that changed since this one was started is then the other's.
        """
        here = this_process()
        is_earlier = self.host == here.host and _UNKNOWN not in (self.boot, here.boot) and self.boot != here.boot
        booted_at = _booted_at()
        return is_earlier and booted_at is not None and changed_at < booted_at

    @property
    def _is_seen_from_here(self) -> bool:
        here = this_process()
        if _HAS_PROC:
            return (self.boot, self.space) == (here.boot, here.space) and _UNKNOWN not in (self.boot, self.space)
        return self.host == here.host


def this_process() -> Process:
    """The identity of the process that asks."""
    return _process(os.getpid())  # a forked child has another


@lru_cache(maxsize=1)
def _process(pid: int) -> Process:
    status = _status(pid)
    return Process(_host(), _boot(), _space(), pid, status.started if status is not None else _UNKNOWN)


@dataclass(frozen=True, slots=True)
class _Status:
    runs: bool
    started: str


def _status(pid: int) -> _Status | None:
    """What the system says of a process of this namespace, where it says anything."""
    try:
        # A container may see the `/proc` of its host, where its process ids are others.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        # The command stands in parentheses, and may hold any of them.
        fields = text[text.rindex(")") + 1 :].split()
        # A process whose first thread has ended goes on as long as another of its threads does.
        return _Status(runs=fields[0] not in "ZX" or int(fields[17]) > 1, started=fields[19])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _host() -> str:
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    return hashlib.sha256(f"{socket.gethostname()}\n{machine}".encode()).hexdigest()[:8]


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return _UNKNOWN


def _space() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return _UNKNOWN


@cache
def _booted_at() -> float | None:
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.time() - time.clock_gettime(clock)
