"""Why DuckDB refused a statement, as one sentence of ours."""

from __future__ import annotations

import re

WRITE_TO_DO_MORE = "sql(…, write=True) in Python may do more"

# DuckDB's words where a connection is closed off, as `connections` opens those that only read.
_OUTSIDE = re.compile(
    r"disabled (by|through) config|configuration has been locked|Cannot launch in-memory database|"
    r"file system operations are disabled"
)


def reason_of(error: Exception) -> str:
    """DuckDB's message as one sentence, without its picture of the query."""
    message = str(error).split("\n\nLINE ")[0]
    if _OUTSIDE.search(message):
        return (
            "the query reaches outside of the store (files, extensions, settings), and is only allowed to read the "
            f"store; {WRITE_TO_DO_MORE}"
        )
    if "read-only mode" in message:
        return f"the query would change the store, and is only allowed to read; {WRITE_TO_DO_MORE}"
    return " ".join(message.split())
