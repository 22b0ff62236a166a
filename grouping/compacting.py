"""Writing a store's file anew: without the space of what was deleted, in the present format.

The new file is made beside the old one while the old one's lock is held, and takes its
place by one rename: a reader finds either, a crash leaves the old one. `connections`
notices when the file that it opened has been replaced meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.grouping.connections import FORMAT, quoted

if TYPE_CHECKING:
    import duckdb


def compact(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Replace the file of a connection, open for writing, by a copy of it; close the connection then.

    Raises:
        duckdb.Error: if the copy cannot be written; the file is as it was.
    """
    copy = path.with_name(path.name + ".compacting")
    copy.unlink(missing_ok=True)  # what a process that was killed left
    try:
        connection.execute("CHECKPOINT")
        connection.execute(f"ATTACH {quoted(copy)} AS compacted ({FORMAT})")
        connection.execute("COPY FROM DATABASE store TO compacted")
        connection.execute("DETACH compacted")
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        copy.replace(path)
    finally:
        copy.unlink(missing_ok=True)
        copy.with_name(copy.name + ".wal").unlink(missing_ok=True)
