"""The schema of a store: named migrations for its tables, and views that follow the code.

A migration runs once and is remembered by name; a store that knows a name which this
version lacks was written by a newer one, and is refused. Views hold no data: they, and the
comments on every column, are made anew whenever their text has changed.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.errors import StoreVersionError
from tracetune.grouping.groups.align import group_view_sql
from tracetune.grouping.scripts import script

if TYPE_CHECKING:
    import duckdb


def is_current(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Whether a store needs nothing done before it is used.

    Raises:
        StoreVersionError: if the file is not a tracetune store, or a newer one.
    """
    applied = _applied(connection, path)
    return applied == list(_migrations()) and _views_digest(connection) == _view_script_digest()


def prepare(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Bring a store's tables and views up to this version, in one transaction.

    A file in a format that does not know zstd keeps its texts uncompressed until it is
    written anew; `has_old_format` tells.

    Raises:
        StoreVersionError: if the file is not a tracetune store, or a newer one.
    """
    if is_current(connection, path):
        return
    connection.execute("BEGIN")
    try:
        applied = _applied(connection, path)
        if not applied:
            connection.execute(
                "CREATE TABLE schema_migrations (name VARCHAR PRIMARY KEY, applied_at TIMESTAMP NOT NULL)"
            )
            connection.execute("CREATE TABLE schema_views (digest VARCHAR NOT NULL)")
        for name, script in _migrations().items():
            if name not in applied:
                connection.execute(script)
                connection.execute("INSERT INTO schema_migrations VALUES (?, now() AT TIME ZONE 'UTC')", [name])
        connection.execute(_view_script())
        connection.execute("DELETE FROM schema_views")
        connection.execute("INSERT INTO schema_views VALUES (?)", [_view_script_digest()])
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def has_old_format(connection: duckdb.DuckDBPyConnection) -> bool:
    """Whether the file was made in a format older than the one that new stores have."""
    rows = connection.execute(
        "SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = current_database()"
    ).fetchall()
    return any(version in ("v1.0.0+", "v1.1.0+") for (version,) in rows)


@cache
def _migrations() -> dict[str, str]:
    folder = files("tracetune.grouping") / "migrations"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return {entry.name.removesuffix(".sql"): entry.read_text() for entry in found}


@cache
def _view_script() -> str:
    groups = [
        f"CREATE OR REPLACE VIEW {name} AS\n{text.rstrip().rstrip(';')};" for name, text in group_view_sql().items()
    ]
    comments = [script("sql", "views_comments"), script("sql", "tables_comments")]
    return "\n".join([script("sql", "views_rollouts"), script("sql", "views_calls"), *groups, *comments])


@cache
def _view_script_digest() -> str:
    return hashlib.sha256(_view_script().encode()).hexdigest()


def _views_digest(connection: duckdb.DuckDBPyConnection) -> str | None:
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "schema_views" not in tables:
        return None
    digests = connection.execute("SELECT digest FROM schema_views").fetchall()
    return digests[0][0] if digests else None


def _applied(connection: duckdb.DuckDBPyConnection, path: Path) -> list[str]:
    tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if not tables:
        return []
    if not {"schema_migrations", "schema_views"} <= tables:
        raise StoreVersionError(
            f"{path} is a DuckDB file but not a tracetune store (it has tables {', '.join(sorted(tables)[:3])}); "
            "give another path"
        )
    applied = [name for (name,) in connection.execute("SELECT name FROM schema_migrations ORDER BY name").fetchall()]
    if newer := [name for name in applied if name not in _migrations()]:
        raise StoreVersionError(
            f"{path} was written by a newer tracetune (it has migration {newer[0]}, which this version does not know); "
            "upgrade tracetune"
        )
    return applied
