"""Writing a store's file anew: without the space of what was deleted, in the present format.

The new file is made beside the old one while the old one's lock is held, and takes its
place by one rename: a reader finds either, a crash leaves the old one. It is made in a
folder that only its owner can look into, and has the old one's mode and owner before it
is moved. `connections` notices when the file that it opened has been replaced meanwhile.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.files import make_folder
from tracetune.grouping.connections import FORMAT
from tracetune.grouping.private_files import quoted

if TYPE_CHECKING:
    import duckdb


def compact(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Replace the file of a connection, open for writing, by a copy of it; close the connection then.

    Raises:
        duckdb.Error: if the copy cannot be written; the file is as it was.
    """
    folder = path.with_name(path.name + ".compacting")
    _remove(folder)  # what a process that was killed left
    make_folder(folder)
    copy = folder / path.name
    try:
        connection.execute("CHECKPOINT")
        connection.execute(f"ATTACH {quoted(copy)} AS compacted ({FORMAT})")
        connection.execute("COPY FROM DATABASE store TO compacted")
        connection.execute("DETACH compacted")
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        status = path.stat()
        with suppress(PermissionError):  # a team's store may have another owner, who may not be given files
            os.chown(copy, status.st_uid, status.st_gid)
        copy.chmod(stat.S_IMODE(status.st_mode))
        copy.replace(path)
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
