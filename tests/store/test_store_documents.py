"""Every column of every view and table is explained, in the file itself and in docs/."""

from __future__ import annotations

import re
from dataclasses import dataclass

import duckdb
import pytest

from tracetune.grouping import Store

PUBLIC = {
    "rollouts": (
        "rollout_id run split step superseded rollout_index program example_id started_at duration_ms status "
        "error_type reward policy_version n_calls input output trace_id"
    ),
    "calls": (
        "call_id rollout_id run split step example_id module key invocation turn choice kind started_at duration_ms "
        "status model provider policy_version response_id messages completion finish_reason sampling "
        "input_tokens output_tokens prompt_token_ids "
        "completion_token_ids completion_logprobs exact on_policy cached unordered truncated redacted late reward"
    ),
    "groups": ("group_id run split step example_id module key invocation turn size n_rollouts reward_mean reward_std"),
    "group_members": "group_id slot call_id rollout_id reward advantage",
}


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    """A connection to a fresh store's file."""
    path = tmp_path_factory.mktemp("documented") / "traces.duckdb"
    Store(path)
    with duckdb.connect(path, read_only=True) as opened:
        yield opened


@dataclass(frozen=True)
class Section:
    """What docs/ says of one view or table."""

    sentence: str
    columns: list[tuple[str, str, str]]


@pytest.fixture(scope="module")
def documented(repository):
    """The sections of docs/store.md and docs/tables.md, by the view or table that each is about."""
    text = "\n".join((repository / "docs" / name).read_text(encoding="utf-8") for name in ("store.md", "tables.md"))
    return {
        section["name"]: Section(
            section["sentence"], re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", section["rest"], flags=re.MULTILINE)
        )
        for section in re.finditer(
            r"^## `(?P<name>\w+)`\n\n(?P<sentence>.*)\n(?P<rest>(?:(?!#).*\n?)*)", text, flags=re.MULTILINE
        )
    }


def test_the_views_have_exactly_the_public_columns(connection):
    """The columns are those that queries rely on, in their order."""
    listed = connection.execute(
        "SELECT table_name, string_agg(column_name, ' ' ORDER BY column_index) FROM duckdb_columns() "
        "WHERE table_name IN (SELECT view_name FROM duckdb_views() WHERE NOT internal) GROUP BY ALL"
    ).fetchall()
    assert dict(listed) == PUBLIC


def test_each_relation_says_what_its_rows_are(connection, documented):
    """The sentence under a view's or a table's heading is its comment in the file; every one of them has both."""
    assert {name: section.sentence for name, section in documented.items()} == dict(
        connection.execute(
            """
            SELECT table_name, comment FROM duckdb_tables()
            UNION ALL
            SELECT view_name, comment FROM duckdb_views() WHERE NOT internal
            """
        ).fetchall()
    )


def test_each_column_has_its_line(connection, documented):
    """A column's line in docs/ is its comment in the file, and no column is without one."""
    columns: dict[str, list[tuple[str, str, str]]] = {}
    for relation, *column in connection.execute(
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() WHERE NOT internal "
        "ORDER BY table_name, column_index"
    ).fetchall():
        columns.setdefault(relation, []).append(tuple(column))
    assert {name: section.columns for name, section in documented.items()} == columns
    assert [name for name, listed in columns.items() if not all(comment for *_, comment in listed)] == []


def test_a_store_of_an_older_version_gets_the_comments(tmp_path):
    """They are made anew with the views, wherever the text is another."""
    path = tmp_path / "traces.duckdb"
    Store(path)
    with duckdb.connect(path) as older:
        older.execute("COMMENT ON COLUMN scores.value IS NULL")
        older.execute("UPDATE schema_views SET digest = 'of another version'")
    assert Store(path).sql(
        "SELECT comment FROM duckdb_columns() WHERE table_name = 'scores' AND column_name = 'value'"
    ).rows() == [{"comment": "The score, a finite number."}]
