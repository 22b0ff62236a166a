"""A query sees the store and nothing else: no other file is read or written, no setting changes, nothing is loaded."""

from __future__ import annotations

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from store.spool_lines import tables_of

from tracetune import Grouping, Store
from tracetune.errors import QueryError, StoreLocked
from tracetune.grouping.export_otlp import Export

NO_SELECT = r"^the query is \w+, and only SELECT, or EXPLAIN of one, is sure to change nothing: "
READS_FILES = r"^the query calls \w+, which reads or lists files; leave it out: "


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two rollouts of one example, not to be changed; beside it lies a secret."""
    folder = tmp_path_factory.mktemp("closed_off")
    (folder / "secret.csv").write_text("word\nsesame\n")
    store = Store(folder / "traces.duckdb")
    store.add_rollouts(
        {"id": f"r{n}", "example_id": "q1", "index": n, "reward": float(n), "calls": [{"module": "hop"}]}
        for n in range(2)
    )
    return store


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("COPY (FROM calls) TO '{folder}/out.csv'", NO_SELECT),
        ("COPY calls TO '{folder}/out.parquet' (FORMAT parquet)", NO_SELECT),
        ("EXPORT DATABASE '{folder}/exported'", NO_SELECT),
        ("FROM read_csv('{folder}/secret.csv')", READS_FILES),
        ("FROM read_text('{folder}/secret.csv')", READS_FILES),
        ("FROM glob('{folder}/*')", READS_FILES),
        ("FROM read_csv('https://127.0.0.1:1/secret.csv')", READS_FILES),
        ("ATTACH '{folder}/other.duckdb'", NO_SELECT),
        ("ATTACH ':memory:' AS elsewhere", NO_SELECT),
        ("INSTALL httpfs", NO_SELECT),
        ("LOAD httpfs", NO_SELECT),
        ("SET enable_external_access = true", NO_SELECT),
        ("SET memory_limit = '1TB'", NO_SELECT),
        ("PRAGMA temp_directory = '{folder}/elsewhere'", NO_SELECT),
        ("SELECT 1; COPY (FROM calls) TO '{folder}/out.csv'", "^the query has 2 statements; give one SELECT at a time"),
        ("FROM '{folder}/secret.csv'", "reaches outside of the store"),
    ],
)
def test_a_query_that_reaches_outside_is_refused(store, query, complaint):
    """It is refused in words, and neither the folder nor the store is changed."""
    folder = store.path.parent
    before = sorted(folder.iterdir()), tables_of(store.path)
    with pytest.raises(QueryError, match=complaint):
        store.sql(query.format(folder=folder))
    assert (sorted(folder.iterdir()), tables_of(store.path)) == before


def test_a_variable_of_the_asking_program_is_no_table(store):
    """DuckDB by itself would look the name up in whoever calls."""
    frame = pd.DataFrame({"word": ["sesame"]})
    with pytest.raises(QueryError, match="Table with name frame does not exist"):
        store.sql("FROM frame")
    assert len(frame) == 1


def test_a_condition_is_a_query_too(store):
    """`where` reads no file, wherever it is given; the other columns of `rollouts` and `calls` are all it sees."""
    folder = store.path.parent
    before = sorted(folder.iterdir()), tables_of(store.path)
    function, table = (
        f"'q1' IN (SELECT word FROM {source})"
        for source in (f"read_csv('{folder}/secret.csv')", f"'{folder}/secret.csv'")
    )
    for ask in (
        lambda where: store.groups(Grouping(), where=where),
        lambda where: store.lint(where=where),
        store.delete,
        lambda where: store.export_parquet(folder / "exported", where),
        lambda where: Export(store, where).n_spans,
    ):
        with pytest.raises(QueryError, match=READS_FILES[1:]):
            ask(function)
        with pytest.raises(QueryError, match=r"disabled by config|reaches outside of the store|does not exist"):
            ask(table)
        with pytest.raises(QueryError, match=r"more than one expression"):
            ask("true) GROUP BY (true")
    assert (sorted(folder.iterdir()), tables_of(store.path)) == before


def test_a_statement_that_may_write_may_also_reach_out(store):
    """write=True is how a store is joined with other files."""
    query = f"SELECT word FROM read_csv('{store.path.parent}/secret.csv')"
    assert store.sql(query, write=True).rows() == [{"word": "sesame"}]


def test_a_connection_of_duckdbs_own_in_the_same_process_is_named(store):
    """DuckDB shares one instance among the connections of a process, so another kind of connection is in the way."""
    with (
        duckdb.connect(store.path, read_only=True),
        pytest.raises(
            StoreLocked,
            match=r"traces\.duckdb is open in this process, by a duckdb\.connect of its own; close that",
        ),
    ):
        Store(store.path, wait=0.05)
    assert len(Store(store.path).sql("FROM calls")) == 2


def test_an_answer_comes_in_four_forms(store):
    """Rows, Arrow, pandas and Polars hold the same values and types."""
    answer = store.sql("SELECT rollout_id, reward, n_calls, started_at IS NULL AS unknown FROM rollouts ORDER BY 1")
    rows = [
        {"rollout_id": "r0", "reward": 0.0, "n_calls": 1, "unknown": False},
        {"rollout_id": "r1", "reward": 1.0, "n_calls": 1, "unknown": False},
    ]
    schema = pa.schema(
        [("rollout_id", pa.string()), ("reward", pa.float64()), ("n_calls", pa.int64()), ("unknown", pa.bool_())]
    )
    assert (len(answer), answer.columns, answer.rows()) == (2, schema.names, rows)
    assert answer.arrow().equals(pa.Table.from_pylist(rows, schema=schema))
    pd.testing.assert_frame_equal(answer.df(), pd.DataFrame(rows))
    assert answer.pl().equals(pl.DataFrame(rows))
