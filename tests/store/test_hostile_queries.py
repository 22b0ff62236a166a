"""A query from somebody else: it writes nothing, reads no other file, passes no limit and ends no process of ours."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from tracetune import QueryLimits, Store
from tracetune.errors import InvalidInput, QueryError, QueryLimitReached
from tracetune.grouping.queries.functions import REFUSED, is_harmless

# A statement of each kind that DuckDB knows, aimed at the store's own file. No text is parsed as one of `UNWRITABLE`.
STATEMENTS = {
    "INSERT": "INSERT INTO scores SELECT * FROM scores",
    "UPDATE": "UPDATE scores SET value = 1",
    "CREATE": "CREATE TABLE mine AS SELECT 1",
    "DELETE": "DELETE FROM scores",
    "PREPARE": "PREPARE p AS COPY (SELECT 1) TO '{store}' (FORMAT csv, USE_TMP_FILE false)",
    "EXECUTE": "EXECUTE p",
    "ALTER": "ALTER TABLE scores ADD COLUMN mine INT",
    "TRANSACTION": "BEGIN",
    "COPY": "COPY (SELECT 1) TO '{store}' (FORMAT csv, USE_TMP_FILE false)",
    "ANALYZE": "ANALYZE",
    "VARIABLE_SET": "SET VARIABLE mine = 1",
    "EXPLAIN": "EXPLAIN ANALYZE COPY (SELECT 1) TO '{store}' (FORMAT csv, USE_TMP_FILE false)",
    "DROP": "DROP VIEW calls",
    "EXPORT": "EXPORT DATABASE '{folder}/exported'",
    "PRAGMA": "PRAGMA enable_profiling",
    "VACUUM": "VACUUM",
    "CALL": "CALL enable_logging('QueryLog', storage_path='{folder}/log')",
    "SET": "SET log_query_path = '{folder}/log'",
    "LOAD": "LOAD '{store}'",
    "ATTACH": "ATTACH '{folder}/other.duckdb' AS other",
    "DETACH": "DETACH traces",
    "COPY_DATABASE": "COPY FROM DATABASE traces TO memory",
    "MERGE_INTO": "MERGE INTO scores USING calls ON true WHEN MATCHED THEN DELETE",
}
UNWRITABLE = {"INVALID", "SELECT", "RELATION", "LOGICAL_PLAN", "EXTENSION", "MULTI", "CREATE_FUNC"}
OTHERS = [
    "COPY (SELECT 1) TO '{store}' (FORMAT parquet, USE_TMP_FILE false)",
    "COPY (SELECT 1) TO '{store}.wal' (FORMAT csv, USE_TMP_FILE false)",
    "COPY (SELECT 1) TO '{store}.tmp/a.csv' (FORMAT csv)",
    "SELECT 1; COPY (SELECT 1) TO '{store}' (FORMAT csv, USE_TMP_FILE false)",
    "PREPARE p AS COPY (SELECT 1) TO '{store}' (FORMAT csv, USE_TMP_FILE false); EXECUTE p",
    # To DuckDB comments nest, so that what looks like a SELECT is a part of the comment.
    "EXPLAIN ANALYZE /* /* */ SELECT 1 -- */ COPY (SELECT 1) TO '{store}' (FORMAT csv, USE_TMP_FILE false)",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{store}' (FORMAT csv, USE_TMP_FILE false)",
    "FROM query('COPY (SELECT 1) TO ''{store}'' (FORMAT csv)')",
    "FROM query('FROM enable' || '_logging()')",
    "FROM query('FROM query(''SELECT write_log(1)'')')",
    "FROM json_execute_serialized_sql(json_serialize_sql('SELECT write_log(1)'))",
    "WITH a AS (SELECT write_log('x')) FROM a",
    "SELECT list_transform([1], lambda x: write_log('x'))",
    "SELECT count(*) FILTER (WHERE write_log('x') IS NULL) FROM calls",
    "SELECT system.main.\"WRITE_LOG\"('x')",
    "SELECT 1 FROM calls ORDER BY write_log('x')",
    "PIVOT calls ON module",
    "CHECKPOINT",
    "INSTALL httpfs",
    "RESET memory_limit",
    "USE memory",
    "COMMENT ON TABLE scores IS 'mine'",
]


def traces_in(folder: Path) -> Store:
    """A store with one rollout of one call."""
    store = Store(folder / "traces.duckdb")
    store.add_rollouts([{"id": "r1", "example_id": "q1", "reward": 0.5, "calls": [{"module": "hop"}]}])
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in a folder of its own, which no query may change."""
    return traces_in(tmp_path_factory.mktemp("attacked"))


def state_of(store: Store) -> dict[str, str]:
    """The hash of every file in the store's folder."""
    return {
        str(path.relative_to(store.path.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.path.parent.rglob("*"))
        if path.is_file()
    }


def test_every_kind_of_statement_is_tried() -> None:
    """DuckDB has no kind of statement that these tests do not know."""
    assert set(STATEMENTS) | UNWRITABLE == set(duckdb.StatementType.__members__)


@pytest.mark.parametrize("statement", [*STATEMENTS.values(), *OTHERS])
def test_whatever_is_no_reading_select_is_refused_before_it_runs(store: Store, statement: str) -> None:
    """No file is changed, made or removed."""
    before = state_of(store)
    with pytest.raises(QueryError):
        store.sql(statement.format(store=store.path, folder=store.path.parent))
    assert state_of(store) == before


@pytest.mark.parametrize(
    "statement", [STATEMENTS["COPY"], STATEMENTS["EXPLAIN"], STATEMENTS["CALL"], "FROM enable_logging('QueryLog')"]
)
def test_an_isolated_query_is_refused_alike(store: Store, statement: str) -> None:
    """The helper process refuses in the words in which this process does."""
    before = state_of(store)
    query = statement.format(store=store.path, folder=store.path.parent)
    with pytest.raises(QueryError) as here:
        store.sql(query)
    with pytest.raises(QueryError) as there:
        store.sql(query, isolated=True)
    assert str(there.value) == str(here.value)
    assert state_of(store) == before


def test_every_function_of_duckdb_is_judged() -> None:
    """A function that a new DuckDB brings is on one of the two lists once somebody has looked at it."""
    found = duckdb.sql("SELECT DISTINCT lower(function_name) FROM duckdb_functions()").fetchall()
    assert {name for (name,) in found if not is_harmless(name)} - set(REFUSED) == set()
    assert [name for name in REFUSED if is_harmless(name)] == []


def test_a_function_that_nobody_judged_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of DuckDB's that is on no list is not called; one that DuckDB does not have gets DuckDB's words."""
    monkeypatch.setattr("tracetune.grouping.queries.read_only.is_harmless", lambda name: name != "md5")
    with pytest.raises(QueryError, match=r"^the query calls md5, which DuckDB \d\..* has and this version of tracetun"):
        store.sql("SELECT md5('x')")
    with pytest.raises(QueryError, match=r"^Catalog Error: Scalar Function with name md55 does not exist"):
        store.sql("SELECT md55('x')")


CALL_EVERY_FUNCTION = """
    import json, sys
    import duckdb
    from tracetune import QueryLimits, Store
    from tracetune.errors import QueryError

    store, folder = Store(sys.argv[1]), sys.argv[2]
    values = {"VARCHAR": f"'{sys.argv[1]}'", "BOOLEAN": "true", "BLOB": "'x'::BLOB"}
    outcomes = {"answered": 0, "refused": 0}
    # Of each name the overload that takes the most texts.
    found = duckdb.sql(
        "SELECT function_name, function_type, "
        "arg_max(parameter_types, len(list_filter(parameter_types, lambda t: t = 'VARCHAR'))) "
        "FROM duckdb_functions() GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    for name, kind, types in found:
        arguments = ", ".join(values.get(each, "1") for each in types or ["VARCHAR"])
        call = f'"{name}"({arguments})'
        query = f"FROM {call}" if "table" in kind or kind == "pragma" else f"SELECT {call}"
        try:
            store.sql(query, limits=QueryLimits(seconds=20, rows=100_000))
            outcomes["answered"] += 1
        except QueryError:
            outcomes["refused"] += 1
    print(json.dumps(outcomes))
"""


def test_every_function_can_be_called_and_none_acts(tmp_path: Path) -> None:
    """Called with the store's own path as arguments, no function changes a file or ends the process."""
    store = traces_in(tmp_path)
    before = state_of(store)
    script = [sys.executable, "-c", textwrap.dedent(CALL_EVERY_FUNCTION), str(store.path), str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes["answered"] > 300
    assert outcomes["refused"] > 300
    assert state_of(store) == before


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(
    ("query", "limits", "complaint"),
    [
        (
            "SELECT count(*) FROM range(30000000), range(300000000)",
            {"seconds": 0.5},
            r"^the query took longer than 0.5 s; ask for less \(WHERE, LIMIT\), or give it longer: "
            r"limits=QueryLimits\(seconds=…\), --max-seconds in the command line$",
        ),
        (
            "FROM range(3000000) AS a, range(3000000) AS b",
            {},
            r"^the query's answer has more than 1000000 rows; add a LIMIT, or allow more: "
            r"limits=QueryLimits\(rows=…\), --max-rows in the command line$",
        ),
        (
            "SELECT repeat('x', 10000) FROM range(1000000)",
            {"size": "5MB"},
            r"^the query's answer is larger than 5MB; ask for less, or allow more: "
            r"limits=QueryLimits\(size=…\), --max-size in the command line$",
        ),
    ],
)
def test_a_query_ends_at_its_limits(
    store: Store, query: str, limits: dict[str, object], complaint: str, isolated: bool
) -> None:
    """Time, rows and size are bounded, in this process and in another, and the message says how to raise the bound."""
    with pytest.raises(QueryLimitReached, match=complaint):
        store.sql(query, isolated=isolated, limits=QueryLimits(**limits))  # type: ignore[arg-type]


def test_memory_that_duckdb_does_not_count_is_bounded_too(tmp_path: Path) -> None:
    """One batch of long texts is larger than an isolated query may be: the query ends, and this process goes on."""
    small = Store(traces_in(tmp_path).path, memory_limit="200MB")
    with pytest.raises(QueryError, match=r"Out of Memory|bad.?alloc|ended the process"):
        small.sql("SELECT repeat('x', 1000000) FROM range(6000)", isolated=True)
    assert len(small.sql("FROM calls", isolated=True)) == 1


def test_limits_within_which_a_query_stays_change_nothing(store: Store) -> None:
    """An answer within its limits is the one that the query has without them."""
    query = "SELECT range AS n, repeat('x', 3) AS text, [range] AS list FROM range(5000) ORDER BY n"
    plain = store.sql(query).arrow()
    assert store.sql(query, limits=QueryLimits()).arrow().equals(plain)
    assert store.sql(query, isolated=True).arrow().equals(plain)
    assert (
        store.sql("FROM calls WHERE false", isolated=True).arrow().schema.equals(store.sql("FROM calls").arrow().schema)
    )


def test_parameters_reach_an_isolated_query(store: Store) -> None:
    """Values of every kind that Arrow knows arrive as they are, by place and by name."""
    values = [1, 0.5, "x", None, True, [1, 2], {"a": 1}, dt.datetime(2020, 1, 2, 3), Decimal("1.50"), b"\0"]
    query = "SELECT " + ", ".join(f"? AS v{place}" for place in range(len(values)))
    assert store.sql(query, values, isolated=True).rows() == [
        {f"v{place}": value for place, value in enumerate(values)}
    ]
    assert store.sql("SELECT $b AS b, $a AS a", {"a": 1, "b": "two"}, isolated=True).rows() == [{"b": "two", "a": 1}]
    with pytest.raises(InvalidInput, match="a parameter of an isolated query cannot be sent"):
        store.sql("SELECT ?", [object()], isolated=True)


def test_a_process_that_a_query_ends_is_not_this_one(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that is killed, or that fails in a way of its own, is an error with its signal or last words."""
    for script, complaint in (
        ("kill -ABRT $$", r"^the query ended the process that it ran in \(SIGABRT\); the store is as it was: change"),
        ("echo 'no space' >&2; exit 9", r"^the query ended the process that it ran in \(status 9: no space\); the"),
    ):
        helper = tmp_path / "helper"
        helper.write_text(f"#!/bin/sh\n{script}\n")
        helper.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(helper))
        with pytest.raises(QueryError, match=complaint):
            store.sql("FROM calls", isolated=True)


def test_the_helper_gets_no_secrets(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment variables that Python does not need stay with the asking process."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\nexit 9\n")
    helper.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(helper))
    with pytest.raises(QueryError):
        store.sql("FROM calls", isolated=True)
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert {"OPENAI_API_KEY", "HOME"} & names == set()
    assert "PYTHONPATH" in names


@pytest.mark.parametrize(
    "definition",
    [
        "CREATE VIEW mine AS SELECT write_log('x') AS a",
        "CREATE VIEW \"x AS SELECT 1 --\" AS SELECT write_log('x') AS a",
        "CREATE VIEW mine(\"a) AS SELECT 1 --\", b) AS SELECT write_log('x'), 2",
        "CREATE SCHEMA other; CREATE VIEW other.mine AS SELECT write_log('x') AS a",
        "CREATE OR REPLACE VIEW rollouts AS SELECT write_log('x') AS rollout_id",
        "CREATE MACRO count(a) AS write_log('x')",
        "CREATE MACRO innocent(a) AS write_log('x'); CREATE MACRO count(a) AS innocent(a)",
        "CREATE MACRO count(a) AS 1, (a, b) AS write_log('x')",
        "CREATE MACRO range(a) AS TABLE SELECT write_log('x') AS range",
    ],
)
def test_what_a_strange_store_defines_is_checked_too(tmp_path: Path, definition: str) -> None:
    """A file from somebody else can hide a function that acts behind a view, or behind a name of DuckDB's own."""
    store = traces_in(tmp_path)
    store.sql(definition, write=True)
    with pytest.raises(QueryError, match="the query calls write_log, which changes what DuckDB keeps or does"):
        store.sql("SELECT count(1) FROM range(3)", isolated=True)


def test_views_and_macros_that_only_compute_are_welcome(tmp_path: Path) -> None:
    """A store may define more than tracetune does."""
    store = traces_in(tmp_path)
    store.sql('CREATE VIEW mine("a)", b) AS SELECT module, 2 FROM calls', write=True)
    store.sql("CREATE MACRO twice(a) AS 2 * a, (a, b) AS 2 * a + b", write=True)
    store.sql("CREATE MACRO calls_of(name) AS TABLE SELECT module FROM calls WHERE module = name", write=True)
    query = "SELECT \"a)\", twice(b), twice(b, 1), (SELECT count(*) FROM calls_of('hop')) AS n FROM mine"
    assert [list(row.values()) for row in store.sql(query, isolated=True).rows()] == [["hop", 4, 5, 1]]


@pytest.mark.parametrize(
    "query",
    [
        "EXPLAIN SELECT 1",
        "explain analyze FROM calls",
        "EXPLAIN (ANALYZE, FORMAT json) SELECT count(*) FROM calls",
        "EXPLAIN (SELECT 1)",
        "SUMMARIZE calls",
        "DESCRIBE calls",
        "SHOW TABLES",
        "FROM query('FROM calls')",
        "PIVOT (SELECT module, reward FROM calls) ON module IN ('hop') USING sum(reward)",
        "WITH RECURSIVE t(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM t WHERE a < 5) FROM t -- five",
        "SELECT 1;",
    ],
)
def test_what_only_reads_is_answered(store: Store, query: str) -> None:
    """The forms of SELECT that DuckDB has all work."""
    assert len(store.sql(query)) > 0


@pytest.mark.parametrize("depth", [20_000, 200_000])
def test_a_query_that_is_nested_too_deep_is_refused(store: Store, depth: int) -> None:
    """Neither DuckDB's parser nor our look at the tree brings the process down."""
    with pytest.raises(QueryError):
        store.sql("SELECT " + "(" * depth + "SELECT 1" + ")" * depth)
    with pytest.raises(QueryError):
        store.sql("SELECT " + "-" * depth + "1 + " + "abs(" * depth + "1" + ")" * depth, isolated=True)


def test_a_query_that_may_write_has_no_limits(store: Store) -> None:
    """What cannot be had together is refused, before anything runs."""
    for more in ({"isolated": True}, {"limits": QueryLimits()}):
        with pytest.raises(InvalidInput, match="a query that may write is neither isolated nor limited"):
            store.sql("SELECT 1", write=True, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"seconds": 0}, "seconds of QueryLimits must be more than 0, not 0"),
        ({"rows": -1}, "rows of QueryLimits must be more than 0, not -1"),
        ({"seconds": float("nan")}, "seconds of QueryLimits must be more than 0, not nan"),
        ({"size": "big"}, "size is a size such as '4GB' or '512MiB', not 'big'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(settings: dict[str, object], complaint: str) -> None:
    """In one sentence, where they are given."""
    with pytest.raises(InvalidInput) as refusal:
        QueryLimits(**settings)  # type: ignore[arg-type]
    assert str(refusal.value) == complaint


def test_an_isolated_query_leaves_nothing_behind(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What DuckDB works on disk with stands in a folder of its own, which is gone afterwards."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    spilling = Store(store.path, memory_limit="60MB")
    answer = spilling.sql(
        "SELECT count(*) AS n FROM (SELECT hash(range) AS h, repeat('x', 50) AS t FROM range(1000000) ORDER BY h, t)",
        isolated=True,
    )
    assert isinstance(answer.arrow(), pa.Table)
    assert list(tmp_path.iterdir()) == []
    assert state_of(spilling).keys() == state_of(store).keys()
