"""Every column of the public views is explained, in the file itself and in docs/store.md."""

from __future__ import annotations

import re

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
        "completion_token_ids completion_logprobs exact on_policy cached unordered truncated late reward"
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


def test_the_views_have_exactly_the_public_columns(connection):
    """The columns are those that queries rely on, in their order."""
    listed = connection.execute(
        "SELECT table_name, string_agg(column_name, ' ' ORDER BY column_index) FROM duckdb_columns() "
        "WHERE table_name IN (SELECT view_name FROM duckdb_views() WHERE NOT internal) GROUP BY ALL"
    ).fetchall()
    assert dict(listed) == PUBLIC


@pytest.mark.parametrize("view", PUBLIC)
def test_each_column_has_its_line(connection, repository, view):
    """A column's line in docs/store.md is its comment in the file."""
    text = (repository / "docs" / "store.md").read_text(encoding="utf-8")
    section = text.split(f"## `{view}`")[1].split("\n#")[0]
    documented = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    columns = connection.execute(
        "SELECT column_name, data_type, comment FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index",
        [view],
    ).fetchall()
    assert documented == columns
    assert all(comment for _, _, comment in columns)


def test_each_table_has_its_line(connection, repository):
    """Every table of the file stands in the list of docs/store.md, and no other."""
    section = (repository / "docs" / "store.md").read_text(encoding="utf-8").split("# Tables")[1]
    documented = {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert documented == {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
