"""What goes wrong outside of a query, as errors of tracetune: full disks, lost files, too little memory.

Every use of DuckDB and of files in `Store` stands inside of `told`, so that none of their
own exceptions leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from tracetune.errors import StoreError

_REMEDIES = {
    "no space left on device": "free the disk",
    "disk quota exceeded": "free the disk",
    "file too large": "raise the limit of a file's size",
    "permission denied": "see who may read and write it",
    "read-only file system": "see who may read and write it",
    "too many open files": "raise the limit of open files",
    "file name too long": "give a shorter path",
    "out of memory": "give the store a larger memory_limit, or ask for less at once",
}


@contextmanager
def told(path: Path, what: str = "used") -> Iterator[None]:
    """Turns errors of DuckDB and of the system into a `StoreError`.

    Args:
        path: the store, or where something is written to.
        what: what was being done with it: "used", "read", "written".

    Raises:
        StoreError: in their place, with the reason and what to do.
    """
    try:
        yield
    except (duckdb.Error, OSError, MemoryError) as error:
        raise StoreError(f"{path} cannot be {what} ({reason_in_a_line(error)}); {remedy(error)}") from error


def reason_in_a_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "out of memory"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def remedy(error: BaseException) -> str:
    """What to do about it."""
    said = reason_in_a_line(error).lower()
    return next((remedy for words, remedy in _REMEDIES.items() if words in said), "see the file and its disk")
