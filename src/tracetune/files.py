"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside another one, which takes its place at the end of the block; nothing is left where the block fails.

    What was at the path before stays until then. A folder may take the place of an empty folder.

    Example:
        >>> with written_whole(Path("rows.txt")) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        >>> Path("rows.txt").read_text()
        'all of it'
    """
    path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path  # a pipe or a device is written to as it is
        return
    # An empty folder may be a disk of its own, or where somebody stands: it is filled, and not replaced.
    is_filled = path.is_dir()
    unfinished = (path if is_filled else path.parent) / f".{path.name[:100]}.{secrets.token_hex(4)}.unfinished"
    try:
        yield unfinished
        if is_filled:
            for child in unfinished.iterdir():
                child.rename(path / child.name)
            unfinished.rmdir()
        else:
            os.replace(unfinished, path)
    except BaseException:
        _remove(unfinished)
        raise


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
