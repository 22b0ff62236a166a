"""Upkeep: old files are brought up to date, rollouts can be taken out, files written anew and out as Parquet."""

from __future__ import annotations

import lzma
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from store.spool_lines import a_rollout, tables_of, write_segment

from tracetune.errors import InvalidInput, QueryError, StoreLocked
from tracetune.grouping import Store

FIRST_SCHEMA = Path(__file__).parent / "first_schema.duckdb.xz"
# The columns of `calls` that a store of the first schema did not have.
NEWER = "provider, input_tokens, output_tokens, redacted"


@pytest.fixture
def path(tmp_path):
    """Where the store of a test stands."""
    return tmp_path / "traces.duckdb"


def storage_version(path):
    """The format of a file, as DuckDB calls it."""
    with duckdb.connect(path, read_only=True) as connection:
        return connection.execute(
            "SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = current_database()"
        ).fetchone()[0]


def test_a_store_of_the_first_schema_opens_and_holds_what_it_held(path):
    """Migrated when it is opened, an old file gives the same answers, in the present format, once."""
    path.write_bytes(lzma.decompress(FIRST_SCHEMA.read_bytes()))
    with duckdb.connect(path, read_only=True) as connection:
        assert connection.execute("SELECT name FROM schema_migrations").fetchall() == [("0001_tables",)]
        views = {
            "rollouts": "FROM rollouts",
            "calls": f"SELECT * EXCLUDE ({NEWER}) FROM calls",
            "group_members": "FROM group_members",
        }
        before = {
            name: sorted(connection.execute(f"FROM {name}").fetchall(), key=repr) for name in views
        }  # in its own schema
    store = Store(path)
    after = {}
    for name, query in views.items():
        rows = [tuple(row.values()) for row in store.sql(query).rows()]
        after[name] = sorted(rows, key=repr)
    assert after == before
    assert {name: len(rows) for name, rows in before.items()} == {"rollouts": 5, "calls": 8, "group_members": 2}
    assert store.sql("SELECT DISTINCT provider FROM calls").rows() == [{"provider": "custom"}]
    assert storage_version(path) == "v1.2.0+"
    (again,) = [path.stat().st_ino]
    Store(path)
    assert path.stat().st_ino == again
    assert [name for name in os.listdir(path.parent) if name != path.name] == []


def test_an_old_store_takes_in_new_rollouts(path):
    """What is recorded after the migration stands beside what was there."""
    path.write_bytes(lzma.decompress(FIRST_SCHEMA.read_bytes()))
    write_segment(path, "1-1-a", *a_rollout())
    assert Store(path).sql("SELECT count(*) AS rollouts, count(reward) AS scored FROM rollouts").rows() == [
        {"rollouts": 6, "scored": 5}
    ]


def test_deleted_rollouts_take_everything_with_them(path):
    """Calls, spans, tokens, scores, starts and ends of a deleted rollout are gone, those of others are as they were."""
    write_segment(path, "1-1-a", *a_rollout(1))
    store = Store(path)
    store.ingest()
    kept = tables_of(path)
    write_segment(path, "2-1-a", *a_rollout(2), *a_rollout(3))
    assert store.delete("rollout_id <> 'r1'") == 2
    left = tables_of(path)
    assert {name: rows for name, rows in left.items() if name != "segments"} == {
        name: rows for name, rows in kept.items() if name != "segments"
    }


def test_a_token_record_that_another_rollout_was_given_too_stays(path):
    """A cached answer is another rollout's as well: deleting the first keeps the tokens of the second."""
    write_segment(path, "1-1-a", *a_rollout(1))
    store = Store(path)
    with_answer = "UPDATE call_rows SET completion_key = (SELECT min(completion_key) FROM completions) "
    write_segment(path, "2-1-a", *a_rollout(2))
    store.ingest()
    store.sql(with_answer + "WHERE rollout_id = 'r2'", write=True)
    assert store.delete("rollout_id = 'r1'") == 1
    assert store.sql("SELECT DISTINCT completion_token_ids IS NOT NULL AS exact FROM calls").rows() == [{"exact": True}]


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("no_such_column = 1", "no_such_column.*not found"),
        ("true); DROP TABLE spans; SELECT (true", "is not one condition over rollouts: the query has 3 statements"),
        ("", "where='' is empty"),
        (" \n", "is empty; pass one condition over rollouts"),
    ],
)
def test_what_is_no_condition_deletes_nothing(path, where, complaint):
    """A condition that DuckDB refuses, or that is more than one, changes nothing."""
    write_segment(path, "1-1-a", *a_rollout())
    store = Store(path)
    store.ingest()
    before = tables_of(path)
    with pytest.raises(QueryError, match=complaint):
        store.delete(where)
    assert tables_of(path) == before


def test_a_compacted_file_is_smaller_and_holds_the_same(path):
    """Compacting gives back the space of what was deleted; every row, comment and table of the user's stays."""
    store = Store(path)
    for number in range(4):
        write_segment(path, f"{number}-1-a", *(line for which in range(50) for line in a_rollout(number * 50 + which)))
        store.ingest()
    store.sql("CREATE TABLE mine AS SELECT 1 AS one", write=True)
    assert store.delete("rollout_index > 0") == 199
    before = tables_of(path)
    size = path.stat().st_size
    smaller = store.compact()
    assert (smaller, path.stat().st_size) == (size - path.stat().st_size, size - smaller)
    assert smaller > 0
    assert tables_of(path) == before
    assert Store(path).sql("FROM mine").rows() == [{"one": 1}]
    assert sorted(os.listdir(path.parent)) == ["traces.duckdb", "traces.duckdb.spool"]


COMPACT = """
import sys
from tracetune.grouping import Store
store = Store(sys.argv[1], wait=60)
for _ in range(6):
    store.compact()
"""


def test_what_is_recorded_while_a_file_is_compacted_is_not_lost(path):
    """Another process compacts again and again while rollouts are taken in: every one of them is there at the end."""
    store = Store(path, wait=60)
    with subprocess.Popen([sys.executable, "-c", COMPACT, path]) as compacting:
        taken = 0
        while compacting.poll() is None or taken < 10:
            write_segment(path, f"{taken}-1-a", *a_rollout(taken))
            store.ingest()
            taken += 1
    assert compacting.returncode == 0
    assert store.sql("SELECT count(*) AS n, sum(n_calls) AS calls FROM rollouts").rows() == [
        {"n": taken, "calls": 3 * taken}
    ]


def test_parquet_files_hold_what_the_views_show(path, tmp_path):
    """Each view is a folder, with one for each run and day in it, and any Parquet reader finds the same rows there."""
    write_segment(path, "1-1-a", *a_rollout(1), *a_rollout(2))
    store = Store(path)
    store.add_rollouts(
        [{"run": "try/2", "example_id": "q1", "reward": 1.0, "calls": [{"module": "hop", "reward": 0.5}]}]
    )
    folder = tmp_path / "out"
    assert store.export_parquet(folder) == {"rollouts": 3, "calls": 7, "spans": 13, "scores": 4}
    assert {str(file.relative_to(folder).parent).rpartition("/day=")[0] for file in folder.rglob("*.parquet")} == {
        f"{view}/run={run}" for view in ("rollouts", "calls", "spans", "scores") for run in ("try-1", "try%2F2")
    }
    with duckdb.connect() as connection:
        for view in ("rollouts", "calls"):
            files = f"read_parquet('{folder}/{view}/**/*.parquet', hive_partitioning = true)"
            columns = ", ".join(store.sql(f"FROM {view} LIMIT 0").arrow().column_names)
            written = connection.execute(f"SELECT {columns} FROM {files}").fetchall()
            shown = [tuple(row.values()) for row in store.sql(f"FROM {view}").rows()]
            assert sorted(written, key=repr) == sorted(shown, key=repr)


def test_parquet_files_go_to_a_folder_of_their_own(path, tmp_path):
    """A folder that holds something is refused, and nothing is written."""
    write_segment(path, "1-1-a", *a_rollout())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(InvalidInput, match="out is not an empty folder"):
        Store(path).export_parquet(tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_only_the_selected_rollouts_are_exported(path, tmp_path):
    """A condition over rollouts holds for their calls, spans and scores too."""
    write_segment(path, "1-1-a", *a_rollout(1), *a_rollout(2))
    assert Store(path).export_parquet(tmp_path / "out", "rollout_id = 'r2'") == {
        "rollouts": 1,
        "calls": 3,
        "spans": 5,
        "scores": 1,
    }


def test_a_read_only_store_refuses_upkeep(path):
    """Nothing is deleted or rewritten in a store that was opened for reading."""
    write_segment(path, "1-1-a", *a_rollout())
    Store(path).ingest()
    store = Store(path, read_only=True)
    with pytest.raises(InvalidInput, match=r"^delete changes the store"):
        store.delete("true")
    with pytest.raises(InvalidInput, match=r"^compact changes the store"):
        store.compact()


def test_a_file_that_this_process_has_open_otherwise_is_locked(path):
    """A connection of the user's own with other settings is named, not passed on as DuckDB's riddle."""
    store = Store(path)
    with duckdb.connect(path, config={"threads": 1}), pytest.raises(StoreLocked, match="is open in this process"):
        store.sql("SELECT 1")


@pytest.mark.parametrize("limit", ["much", "4", " ", "4GB; DROP TABLE spans"])
def test_a_memory_limit_is_a_size(path, limit):
    """What is no size is refused before anything is opened."""
    with pytest.raises(InvalidInput, match="memory_limit is a size"):
        Store(path, memory_limit=limit)
    assert not path.exists()


def test_the_environment_may_set_the_limit(path, monkeypatch):
    """What is given in Python counts for more."""
    limit = "SELECT current_setting('memory_limit') AS limit"
    monkeypatch.setenv("TRACETUNE_MEMORY_LIMIT", "1GiB")
    assert Store(path).sql(limit).rows() == [{"limit": "1.0 GiB"}]
    assert Store(path, memory_limit="2GiB").sql(limit).rows() == [{"limit": "2.0 GiB"}]
    monkeypatch.setenv("TRACETUNE_MEMORY_LIMIT", "much")
    with pytest.raises(InvalidInput, match="memory_limit is a size"):
        Store(path)


def test_a_small_memory_limit_takes_in_what_is_larger(path):
    """Transactions and what DuckDB puts on disk keep ingest within the limit that the user set."""
    lines = [line for number in range(400) for line in a_rollout(number)]
    for part in range(8):
        write_segment(path, f"{part}-1-a", *lines)
    report = Store(path, memory_limit="200MB").ingest()
    assert (report.spans, report.repeated) == (2000, 400 * 11 * 7)
