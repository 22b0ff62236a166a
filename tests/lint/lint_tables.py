"""The lint of plain DuckDB tables in the shape of a store's."""

from __future__ import annotations

from grouping_tables import Rows

from tracetune.grouping.groups.lint import LintReport, lint
from tracetune.types import Grouping

_NOTHING_RECORDED = """
    CREATE TABLE IF NOT EXISTS completions (completion_key UHUGEINT);
    CREATE TABLE IF NOT EXISTS call_rows (call_id VARCHAR, completion_key UHUGEINT);
    CREATE TABLE IF NOT EXISTS segments (rejected BIGINT, conflicting BIGINT);
"""


def lint_of(rows: Rows, grouping: Grouping | None = None, where: str | None = None) -> LintReport:
    """What those rows lack; nothing else was recorded, and none of their scores counts as unknown."""
    with rows.connection() as connection:
        connection.execute(_NOTHING_RECORDED)
        return lint(connection, grouping or Grouping(), where)
