"""Properties of ingest: order, chunks and repetition change nothing, and both decoders mean the same."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from itertools import accumulate
from pathlib import Path
from unittest import mock

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store.spool_lines import START, a_rollout, span

from tracetune.grouping import schema
from tracetune.grouping.columns import CALLS, REAL, RECORDS, SPANS, TEXT, WHOLE
from tracetune.grouping.ingest import fast_spans as plain_spans
from tracetune.grouping.ingest import pipeline as ingest
from tracetune.grouping.ingest import segments as spool_segments
from tracetune.grouping.ingest.fast_lines import PlainLines
from tracetune.grouping.ingest.fast_path import insert_plain, read_plain
from tracetune.grouping.ingest.fast_records import PLAIN_RECORDS
from tracetune.grouping.ingest.otlp import decode
from tracetune.grouping.ingest.records import arrow_table
from tracetune.grouping.queries.results import read_table
from tracetune.tracer import encoding, names

LINES = [line for number in range(3) for line in a_rollout(number)] + [
    span("outer", 900, parent=100, trace_id=100, KIND="lm", ROLLOUT_ID="r0", RESPONSE_ID="response-110", MODULE="hop"),
    span("inner", 901, parent=900, trace_id=100, KIND="lm", ROLLOUT_ID="r0", MODULE="hop", LM_PARENT=f"{900:016x}"),
    b'{"resourceLogs": cut',
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A fresh store's file, to be copied."""
    path = tmp_path_factory.mktemp("prepared") / "traces.duckdb"
    with duckdb.connect(path) as connection:
        schema.prepare(connection, path)
    return path.read_bytes()


def rows_of(connection):
    """Every row of every table but the segments', whose names and counts differ with how lines were cut."""
    listed = connection.execute("SELECT table_name FROM duckdb_tables() WHERE NOT temporary ORDER BY ALL").fetchall()
    return {
        name: sorted(connection.execute(f"FROM {name}").fetchall(), key=repr)
        for (name,) in listed
        if name != "segments" and not name.startswith("schema_")
    }


def ingested(prepared, segments, *, chunk_bytes, rounds, transaction_bytes=1 << 30):
    """The rows of a store that took in those segments, a few of them in each round."""
    with tempfile.TemporaryDirectory() as folder:
        path, spool = Path(folder) / "traces.duckdb", Path(folder) / "spool"
        path.write_bytes(prepared)
        spool.mkdir()
        with duckdb.connect(path) as connection:
            for first in range(0, len(segments), rounds):
                for number, lines in enumerate(segments[first : first + rounds], first):
                    (spool / f"{number}-1-a.jsonl").write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
                ingest.ingest(connection, spool, chunk_bytes=chunk_bytes, transaction_bytes=transaction_bytes)
            return rows_of(connection)


@pytest.fixture(scope="module")
def in_one_go(prepared):
    """The rows of a store that took in all lines at once."""
    return ingested(prepared, [LINES], chunk_bytes=1 << 20, rounds=1)


@settings(max_examples=6)
@given(data=st.data())
def test_the_order_of_lines_and_how_they_are_cut_change_nothing(prepared, in_one_go, data):
    """The same lines in any order, in any segments, chunks and transactions, some twice, make the same tables."""
    lines = data.draw(st.permutations(LINES)) + data.draw(st.lists(st.sampled_from(LINES), max_size=5))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(lines) - 1), max_size=3)))
    segments = [lines[start:end] for start, end in zip([0, *cuts], [*cuts, len(lines)], strict=True)]
    chunk_bytes = data.draw(st.sampled_from([2_000, 1 << 20]))
    sizes = {"chunk_bytes": chunk_bytes, "transaction_bytes": data.draw(st.sampled_from([1_000, 1 << 30]))}
    with mock.patch.object(spool_segments, "_MAPPED_BYTES", data.draw(st.sampled_from([0, 1 << 30]))):
        assert ingested(prepared, segments, rounds=data.draw(st.integers(1, 4)), **sizes) == in_one_go


texts = st.text(max_size=8)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "text", "reasoning"]), "content": texts}, optional={"extra": texts}
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "parts": st.lists(parts, min_size=1, max_size=2)},
        optional={"finish_reason": st.sampled_from(["stop", "", None])},
    ),
    max_size=2,
)


@st.composite
def spans(draw):
    """A span as the tracer might write it, and as it never would."""
    attributes = draw(
        st.fixed_dictionaries(
            {"KIND": st.sampled_from(["lm", "lm", "lm", "module", "program"])},
            optional={
                "ROLLOUT_ID": texts,
                "EXAMPLE_ID": texts,
                "MODULE": texts,
                "KEY": texts,
                "STEP": st.integers(0, 9),
                "TURN": st.integers(0, 2),
                "STATUS": st.sampled_from(["", "ok", "error"]),
                "LATE": st.booleans(),
                "INPUT": st.just('{"a":1}'),
                "TRUNCATED": st.lists(texts, max_size=2),
                "REDACTED": st.lists(texts, max_size=2),
                "FINISH_REASONS": st.lists(st.sampled_from(["stop", ""]), max_size=2),
                "TEMPERATURE": st.sampled_from([0, 1, 0.5, 1e-7]),
                "STOP": st.lists(texts, max_size=2),
                "REQUEST_MODEL": texts,
                "RESPONSE_MODEL": texts,
                "INPUT_MESSAGES": messages.map(compact) | st.sampled_from(["", "[", "{}", "null"]),
                "OUTPUT_MESSAGES": messages.map(compact) | st.sampled_from(["", "[", "{}", "null"]),
            },
        )
    )
    scope = draw(st.sampled_from(["tracetune", "tracetune", "another"]))
    return span(
        draw(st.sampled_from(["name", "n" * 200, '","kind":3,"startTimeUnixNano":"'])),
        draw(st.integers(1, 9)),
        parent=draw(st.sampled_from([None, 5])),
        scope=scope,
        is_client=draw(st.sampled_from([None, None, True, False])),
        **attributes,
    )


def compact(value):
    """JSON as the tracer writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def comparable(row):
    """A row whose JSON texts are values."""
    read = dict(row)
    for name in ("sampling", "messages", "resource", "rest", "input", "output"):
        if read.get(name) is not None:
            read[name] = json.loads(read[name])
    return read


@pytest.fixture
def tables():
    """A connection to the tables of a store, in memory."""
    with duckdb.connect() as connection:
        schema.prepare(connection, Path("in memory"))
        yield connection


def read_quickly(connection, *texts):
    """The lines of each text that DuckDB did not take, and how many rows each table got of the text."""
    lines = PlainLines(texts)
    inserted = [Counter() for _ in texts]
    with connection.cursor() as reader:
        for read in read_plain(reader, lines):
            insert_plain(connection, read, lines.resources)
            for text, rows in lines.take(read.rows):
                inserted[text][read.table] += rows
    return [lines.others(text) for text in range(len(texts))], [+counts for counts in inserted]


def read_both_ways(connection, lines, tables):
    """The rows of those tables as DuckDB read them of the lines it took, and as Python reads the same lines."""
    connection.execute("BEGIN")
    others = {offset for offset, _ in read_quickly(connection, b"".join(lines))[0][0]}
    offsets = accumulate(map(len, lines), initial=0)
    decoded = decode([(offset, line) for offset, line in zip(offsets, lines, strict=False) if offset not in others])
    assert decoded.rejected == []
    rows = {"spans": decoded.spans, "call_rows": decoded.calls, **decoded.records}
    quick, careful = {}, {}
    for name, columns in tables.items():
        answer = read_table(connection, f"SELECT {', '.join(columns.names)} FROM {name}")
        quick[name] = sorted(map(comparable, answer.to_pylist()), key=repr)
        expected = arrow_table(columns, rows.get(name, []))
        careful[name] = sorted(map(comparable, expected.to_pylist()), key=repr)
    connection.execute("ROLLBACK")
    return quick, careful


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(spans(), min_size=1, max_size=12), sampled=st.sampled_from([1, 400]))
def test_the_quick_way_and_the_careful_way_read_the_same(tables, lines, sampled):
    """What DuckDB makes of a plain line is what the decoder in Python makes of it, whichever lines the sample had."""
    with mock.patch.object(plain_spans, "SAMPLED_LINES", sampled):
        quick, careful = read_both_ways(tables, lines, {"spans": SPANS, "call_rows": CALLS})
    assert quick == careful


values = {
    TEXT: texts | st.none(),
    WHOLE: st.integers(-3, 3) | st.none(),
    REAL: st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3),
}
anything = st.sampled_from([None, "three", "3", 3, 0.5, True, [1], {"a": [1.5, "é"]}])


@st.composite
def records(draw):
    """A record as the tracer might write it, sometimes with one field or attribute that it never would."""
    event = draw(st.sampled_from(PLAIN_RECORDS))
    columns = {column.field or column.name: column for column in RECORDS[event].columns}
    known = {name: anything if column.json else values[column.type] for name, column in columns.items()}
    needed = {"rollout_id": "r", "status": "ok", "name": "reward", "value": 1}
    body = {name: value for name, value in needed.items() if name in columns}
    body |= draw(st.fixed_dictionaries({}, optional=known))
    scope = {names.ROLLOUT_ID: texts, names.RUN: texts, names.STEP: st.integers(0, 9)}
    attributes = {names.RECORD_ID: draw(texts)} | draw(st.fixed_dictionaries({}, optional=scope))
    if odd := draw(st.sampled_from(["", "", "", "extra", *columns])):
        place, prefix = draw(st.sampled_from([(body, ""), (attributes, "tracetune.")]))
        place[prefix + odd] = draw(anything)
    return encoding.record_line(event, body, attributes, START)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(records(), min_size=1, max_size=12))
def test_the_quick_way_and_the_careful_way_read_the_same_records(tables, lines):
    """What DuckDB makes of a plain record is what the decoder in Python makes of it."""
    known = {RECORDS[event].table: RECORDS[event].schema for event in PLAIN_RECORDS}
    quick, careful = read_both_ways(tables, lines, known)
    assert quick == careful


def test_the_tracers_own_lines_take_the_quick_way(tables):
    """No span of an ordinary rollout, nor its start, end and score, is left to the decoder in Python."""
    [left], inserted = read_quickly(tables, b"".join(a_rollout()))
    assert [line[:20] for _, line in left] == [b'{"resourceLogs":[{"r'] * 3
    assert inserted == [{"spans": 5, "rollout_starts": 1, "rollout_ends": 1, "scores": 1}]


def test_texts_are_read_together_and_counted_apart(tables):
    """Two processes have resources of their own: each row is counted for its process, and says its resource."""
    here = [span("a", 1, KIND="tool"), b"{}\n", span("b", 2, KIND="module")]
    there = [
        line.replace(b'"service.name"', b'"service.id"')
        for line in (span("c", 3, KIND="tool"), span("d", 4, KIND="lm"))
    ]
    left, inserted = read_quickly(tables, b"".join(here), b"", b"".join(there))
    assert left == [[(len(here[0]), b"{}")], [], []]
    assert inserted == [{"spans": 2}, {}, {"spans": 2}]
    said = tables.execute("SELECT name, contains(resource, 'service.id') FROM spans ORDER BY name").fetchall()
    assert said == [("a", False), ("b", False), ("c", True), ("d", True)]


def test_a_line_that_is_no_json_costs_its_neighbours_nothing(tables):
    """A span with a broken end, where all else of the line is right, is left; the others are read."""
    ours = [span("a", 1, KIND="tool"), span("b", 2, KIND="tool")]
    broken = ours[0].replace(b'"attributes":[', b'"attributes":[[')
    [left], inserted = read_quickly(tables, ours[0] + broken + ours[1])
    assert left == [(len(ours[0]), broken.rstrip())]
    assert inserted == [{"spans": 2}]


@pytest.mark.parametrize("line", [b"\xff\n", b"\n", b"{}\n", b"", b'{"resourceSpans":[]}]}]}\n'])
def test_a_line_that_is_not_the_tracers_is_left_with_its_offset(tables, line):
    """Whatever stands beside them, the tracer's lines are taken, and the others keep their places."""
    ours = a_rollout()
    [left], inserted = read_quickly(tables, b"".join(ours[:1]) + line + b"".join(ours[-1:]))
    assert left == ([(len(ours[0]), line.rstrip(b"\n"))] if line.strip() else [])
    assert inserted == [{"rollout_starts": 1, "scores": 1}]


def test_the_rows_that_ingest_writes_are_those_of_the_migrations(prepared, tmp_path):
    """Columns declared in Python are columns of the tables, of the same types."""
    path = tmp_path / "traces.duckdb"
    path.write_bytes(prepared)
    with duckdb.connect(path) as connection:
        declared = {"spans": SPANS, "call_rows": CALLS} | {table.table: table.schema for table in RECORDS.values()}
        for name, columns in declared.items():
            table = read_table(connection, f"FROM {name}").schema
            assert {column.name: table.field(column.name).type for column in columns if column.name != "members"} == {
                column.name: column.type for column in columns if column.name != "members"
            }


def test_times_are_kept_to_the_nanosecond(prepared):
    """A span's start is not rounded where it is stored."""
    rows = ingested(prepared, [[span("a", 1, at=7, lasts=5, KIND="tool")]], chunk_bytes=1 << 20, rounds=1)
    with duckdb.connect() as connection:
        (at,) = connection.execute("SELECT make_timestamp_ns(?)", [START + 7]).fetchone()
    assert [row[5] for row in rows["spans"]] == [at]
    assert names.KIND not in str(rows["spans"][0][33])
