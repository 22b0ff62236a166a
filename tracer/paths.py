"""Where a store is, and what stands beside it: the one place that makes names out of a store's path.

A store can be reached by several paths, through links. Its spool, its checkpoints and its
locks are named after the file that all of them lead to, so that a store is one store.
"""

from __future__ import annotations

import os
from pathlib import Path

from tracetune.errors import InvalidInput
from tracetune.tracer.warn import warn


def store_path(store: str | os.PathLike[str]) -> Path:
    """The file that a store's path leads to: absolute, links followed; it need not exist.

    Raises:
        InvalidInput: if the store is no path, its links go in a circle, or DuckDB would take
            the path for another one.

    Example:
        >>> store_path("traces.duckdb") == Path.cwd().resolve() / "traces.duckdb"
        True
    """
    if not isinstance(store, str | os.PathLike):
        raise InvalidInput(f"a store is the path of a DuckDB file, not {store!r:.80}")
    check_path(store, "the store's path")
    path = Path(os.path.realpath(store))
    check_path(path, "the store's path")
    if os.path.islink(path):  # of a folder that may not be looked into nothing is known
        raise InvalidInput(f"{store} is a link that leads to itself; give another path")
    return path


def spool_folder(store: str | os.PathLike[str]) -> Path:
    """The folder of a store's spool: `traces.duckdb.spool` beside `traces.duckdb`."""
    return _beside(store, ".spool")


def checkpoints_folder(store: str | os.PathLike[str]) -> Path:
    """The folder of the checkpoints of the runs of a store: `traces.duckdb.checkpoints`."""
    return _beside(store, ".checkpoints")


def warn_of_spool_at_link(store: str | os.PathLike[str]) -> None:
    """Warn where traces wait beside a link to a store: tracetune once named spools after the link."""
    left = Path(f"{os.path.abspath(store)}.spool")
    if left.is_dir() and not left.is_symlink() and left.resolve() != spool_folder(store) and any(left.glob("*.jsonl")):
        warn(
            f"traces wait in {left}, and {store} is a link to a store whose traces go to {spool_folder(store)}; "
            "move the files into that folder"
        )


def check_path(path: str | os.PathLike[str], what: str) -> None:
    """Refuse a path that DuckDB would take for another one.

    Raises:
        InvalidInput: if it is not UTF-8, or has a character that means something to DuckDB.
    """
    text = os.fsdecode(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{what} {text!r} is not UTF-8, and DuckDB opens no other paths; rename it") from None
    for character in ("?", "\0"):
        if character in text:
            raise InvalidInput(
                f"{what} {text!r} has {character!r} in it, which DuckDB does not take for part of a name; rename it"
            )


def _beside(store: str | os.PathLike[str], suffix: str) -> Path:
    path = store_path(store)
    return path.with_name(path.name + suffix)
