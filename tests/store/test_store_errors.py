"""What a store says when something is wrong: what, where, and what to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import duckdb
import pyarrow as pa
import pytest
from store.spool_lines import a_rollout, tables_of, write_segment

from tracetune.errors import (
    InvalidInput,
    InvalidReward,
    QueryError,
    StoreLocked,
    StoreNotFound,
    StoreVersionError,
    UnknownId,
)
from tracetune.grouping import Store

HOLD = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store with one rollout, not to be changed."""
    path = tmp_path_factory.mktemp("stored") / "traces.duckdb"
    write_segment(path, "1-1-a", *a_rollout())
    store = Store(path)
    store.ingest()
    return store


def test_a_store_held_by_another_process_names_it(tmp_path):
    """Waiting in vain ends with the number and the command of the process that holds the file."""
    path = tmp_path / "traces.duckdb"
    store, patient = Store(path, wait=0), Store(path, wait=60)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match=rf"traces\.duckdb is held by process {holder.pid} \(.*python.*\); wait"):
            store.sql("SELECT 1")
        holder.stdin.close()
        assert patient.sql("SELECT 1 AS one").rows() == [{"one": 1}]


def test_bad_sql_is_refused_with_duckdbs_reason(stored):
    """A query that DuckDB refuses raises one sentence, without a picture of the query."""
    with pytest.raises(QueryError, match=r"^Parser Error: syntax error at or near \"SELEC\"$"):
        stored.sql("SELEC 1")
    with pytest.raises(QueryError, match=r"^Binder Error: .*\"nothing\" not found"):
        stored.sql("SELECT nothing FROM calls")


@pytest.mark.parametrize("statement", ["DELETE FROM scores", "CREATE TABLE mine (a INT)", "DROP VIEW calls"])
def test_a_write_through_sql_is_refused(stored, statement):
    """A query changes nothing unless it is allowed to."""
    before = tables_of(stored.path)
    with pytest.raises(QueryError, match="and only SELECT, or EXPLAIN of one, is sure to change nothing"):
        stored.sql(statement)
    assert tables_of(stored.path) == before


def test_a_write_that_is_allowed_writes(tmp_path):
    """With write=True a statement may change the store."""
    store = Store(tmp_path / "traces.duckdb")
    store.sql("CREATE TABLE mine AS SELECT 1 AS a", write=True)
    assert store.sql("FROM mine").rows() == [{"a": 1}]


def test_a_duckdb_file_of_somebody_else_is_refused(tmp_path):
    """A database with other tables is not made a store of."""
    path = tmp_path / "other.duckdb"
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE customers (a INT)")
    with pytest.raises(StoreVersionError, match=r"not a tracetune store .it has tables customers.; give another path"):
        Store(path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    """A text file is not overwritten."""
    path = tmp_path / "notes.duckdb"
    path.write_text("dear diary, " * 1000)
    with pytest.raises(StoreVersionError, match="nor any DuckDB file"):
        Store(path)
    assert path.read_text().startswith("dear diary")


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    """A migration that this version does not know says that a newer one was here."""
    path = tmp_path / "traces.duckdb"
    Store(path).sql("INSERT INTO schema_migrations VALUES ('9999_future', now())", write=True)
    with pytest.raises(StoreVersionError, match=r"newer tracetune .it has migration 9999_future.*upgrade tracetune"):
        Store(path)


def test_a_store_in_a_missing_folder_is_refused(tmp_path):
    """The folder is not made."""
    with pytest.raises(StoreNotFound, match=r"there is no folder .*nowhere for the store traces\.duckdb; create it"):
        Store(tmp_path / "nowhere" / "traces.duckdb")


def test_reading_a_store_that_is_not_there_is_refused_and_creates_none(tmp_path):
    """A mistyped path stays empty."""
    with pytest.raises(StoreNotFound, match=r"there is no store at .*typo\.duckdb"):
        Store(tmp_path / "typo.duckdb", read_only=True)
    assert os.listdir(tmp_path) == []


def test_reading_only_takes_in_the_spool_and_refuses_changes(tmp_path):
    """A read-only store answers with what was recorded, and neither scores nor adds."""
    path = tmp_path / "traces.duckdb"
    write_segment(path, "1-1-a", *a_rollout())
    store = Store(path, read_only=True)
    assert store.sql("SELECT rollout_id FROM rollouts").rows() == [{"rollout_id": "r0"}]
    for change in (lambda: store.reward("r0", 1), lambda: store.add_rollouts([]), lambda: store.sql("x", write=True)):
        with pytest.raises(InvalidInput, match="opened with read_only=True"):
            change()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"rollout_id": "r9"}, "has no rollout 'r9'; see SELECT rollout_id FROM rollouts"),
        ({"rollout_id": None, "call_id": "c9"}, "has no call 'c9'; see SELECT call_id FROM calls"),
    ],
)
def test_a_score_of_what_is_not_there_is_refused(stored, ids, message):
    """An unknown id is named, and nothing is recorded."""
    with pytest.raises(UnknownId, match=re.escape(message)):
        stored.rewards([{"rollout_id": "r0", "value": 1}, {**ids, "value": 1}])
    assert stored.sql("SELECT count(*) AS n FROM scores").rows() == [{"n": 1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", None])
def test_a_score_that_is_not_a_finite_number_is_refused(stored, value):
    """A reward that nothing can be learned from is named, and nothing is recorded."""
    with pytest.raises(InvalidReward, match="score 0 of r0: "):
        stored.reward("r0", value)
    assert stored.sql("SELECT count(*) AS n FROM scores").rows() == [{"n": 1}]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"rollout_id": "r0", "value": 1, "weight": 2}], "score 0 has 'weight'"),
        ([{"value": 1}], "score 0 names neither a rollout_id nor a call_id"),
        (pa.table({"rollout": ["r0"], "value": [1.0]}), "score 0 has 'rollout'"),
        (7, "scores are rows or a table, not int"),
    ],
)
def test_a_table_that_is_not_one_of_scores_is_refused(stored, table, message):
    """A wrong column is named."""
    with pytest.raises(InvalidInput, match=message):
        stored.rewards(table)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "rollout 1 cannot be added: example_id: Field required"),
        ({"example_id": "q", "reward": float("nan")}, "rollout 1 cannot be added: reward: "),
        ({"example_id": "q", "calls": [{"module": "m", "turns": 1}]}, r"calls\.0\.turns: Extra inputs"),
        ({"example_id": "q", "calls": [{"module": "m", "choice": 1}]}, "choice 0 does not stand before it"),
        (
            {"example_id": "q", "calls": [{"module": "m", "prompt_token_ids": [1]}]},
            "prompt_token_ids and completion_token_ids are both known or both not",
        ),
    ],
)
def test_a_row_that_is_not_a_rollout_is_refused(stored, row, message):
    """The row and the field are named, and none of the rows is recorded."""
    with pytest.raises(InvalidInput, match=message):
        stored.add_rollouts([{"example_id": "good"}, row])
    assert stored.sql("SELECT count(*) AS n FROM rollouts").rows() == [{"n": 1}]


def test_an_empty_file_becomes_a_store(tmp_path):
    """What a full disk left where a store was to be made takes in what waited in the spool, once there is room."""
    path = tmp_path / "traces.duckdb"
    path.touch()
    write_segment(path, "1-1-a", *a_rollout())
    assert Store(path).sql("SELECT rollout_id FROM rollouts").rows() == [{"rollout_id": "r0"}]
