"""DuckDB's own files, made so that only their owner can read them: DuckDB makes them as the umask has it."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.files import FILE_MODE, make_folder, private_folder_beside

if TYPE_CHECKING:
    import duckdb


def quoted(path: Path) -> str:
    """A path as a text in SQL."""
    return "'" + str(path).replace("'", "''") + "'"


def make_database(connection: duckdb.DuckDBPyConnection, path: Path, options: str) -> None:
    """Make an empty database where there is none: DuckDB takes no file that is empty.

    Raises:
        duckdb.IOException: if it cannot be made.
    """
    from duckdb import IOException

    try:
        with private_folder_beside(path) as folder:
            fresh = folder / path.name
            connection.execute(f"ATTACH {quoted(fresh)} AS fresh ({options})")
            connection.execute("DETACH fresh")
            fresh.chmod(FILE_MODE)
            _put(fresh, path)
    except OSError as error:
        raise IOException(str(error)) from error


def _put(fresh: Path, path: Path) -> None:
    """Move a file to a place that is free; another process that was quicker has made the same."""
    try:
        os.link(fresh, path)
    except FileExistsError:
        return
    except OSError:  # there are file systems without links
        if not path.exists():
            fresh.rename(path)


def spill_folder(path: Path) -> Path:
    """Where one connection to a database puts what does not fit into memory."""
    return path.with_name(f"{path.name}.tmp") / secrets.token_hex(8)


def make_spill_folder(spill: Path, *, is_alone: bool) -> None:
    """Make it before DuckDB does.

    Args:
        spill: the folder of a connection that is open.
        is_alone: whether no other can be open: whatever else is there was left by processes that were killed.
    """
    for _ in range(10):  # another connection may remove the folder above in this moment
        try:
            make_folder(spill)
            break
        except FileNotFoundError:
            continue
        except OSError:  # nothing can be written here, so there is nothing to hide
            return
    if is_alone:
        for left in spill.parent.iterdir():
            if left != spill:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def remove_spill_folder(spill: Path) -> None:
    """Remove it after its connection was closed."""
    shutil.rmtree(spill, ignore_errors=True)
    with suppress(OSError):  # another connection's is in it
        spill.parent.rmdir()
