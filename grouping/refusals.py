"""Why DuckDB refused a statement, as one sentence of ours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

# What it says where a connection is closed off, as `connections` opens those that only read.
_OUTSIDE = re.compile(
    r"disabled (by|through) configuration|configuration has been locked|Cannot launch in-memory database"
)


def reason_of(error: duckdb.Error) -> str:
    """DuckDB's message as one sentence, without its picture of the query."""
    message = str(error).split("\n\nLINE ")[0]
    if _OUTSIDE.search(message):
        return (
            "the query reaches outside of the store (files, extensions, settings), and is only allowed to read what is "
            "in it; from Python, sql(…, write=True) may"
        )
    if "read-only mode" in message:
        return (
            "the query would change the store, and is only allowed to read; from Python, sql(…, write=True) may write"
        )
    return " ".join(message.split())
