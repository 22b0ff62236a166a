"""Logs that are not what they should be: what is wrong is said with its place, and the good rest is kept."""

from __future__ import annotations

import gzip
import io
import sys

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import logged_program

from tracetune import Store
from tracetune.adapters.formats import FormatOptions, Line, Refused, format_named

GOOD = {
    "langfuse": logged_program.langfuse()[0],
    "langsmith": logged_program.langsmith()[-1],
    "openinference": logged_program.openinference()[0],
    "openai": {
        "request": {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]},
        "response": {"id": "1", "choices": [{"message": {"role": "assistant", "content": "4"}}]},
    },
    "rows": {"prompt": "2 + 2?", "completion": "4"},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def read(name, content, **options):
    """What a format makes of a file."""
    return list(format_named(name).read(io.BytesIO(content), FormatOptions(**options)))


@pytest.mark.parametrize("name", GOOD)
@given(data=st.data())
@settings(max_examples=40)
def test_no_line_takes_its_neighbour_with_it(name, data):
    """Whatever a field holds, or is missing, the whole line before it and the one after it are read."""
    good = GOOD[name]
    field = data.draw(st.sampled_from(sorted(good)))
    bad = {key: value for key, value in good.items() if key != field}
    if data.draw(st.booleans()):
        bad[field] = data.draw(VALUES)
    try:
        middle = orjson.dumps(bad)
    except TypeError:  # an integer that JSON has no room for
        return
    alone = read(name, orjson.dumps(good))
    assert [type(piece) for piece in alone].count(Line) >= 1
    found = read(name, b"\n".join([orjson.dumps(good), middle, orjson.dumps(good)]))
    spans = [piece.text for piece in alone if isinstance(piece, Line) and piece.spans]
    kept = [piece.text for piece in found if isinstance(piece, Line) and piece.spans]
    if name == "rows":  # rows stand where the table has them
        assert len(kept) >= 2
    else:
        assert [text for text in kept if text in spans][:2] == spans * 2


@pytest.mark.parametrize("name", GOOD)
@given(content=st.binary(max_size=80))
@settings(max_examples=40)
def test_no_bytes_crash_a_reader(name, content):
    """Bytes that are no log are refused, each with its place and the reason, or say nothing."""
    for start in (b"", b"{", b"["):
        found = read(name, start + content)
        assert [piece for piece in found if not (isinstance(piece, Refused) and piece.place and piece.reason)] == []


REFUSALS = [
    ("langfuse", b'{"run_type": "llm", "id": "1"}', "line 1: it is not an observation, a score or a trace of Langfuse;"
     " it looks like langsmith, which --format langsmith reads"),
    ("langsmith", b'{"resourceSpans": []}', "line 1: it is not a run of LangSmith; it looks like otlp, which --format"
     " otlp reads"),
    ("openai", b'{"question": 1}', "line 1: it is not a chat completion's request and response; its keys are question"),
    ("openai", b'{"custom_id": "a", "body": {"messages": []}}', "line 1: the file has no response of custom_id 'a';"
     " give both files at once"),
    ("openinference", b"name,parent\n", "line 1: it is neither JSON lines nor a JSON array nor Parquet"),
    ("langfuse", b"[1]", "item 1: an object belongs here, not int"),
    ("langfuse", b'[{"id": 1}', "the file: not JSON: "),
    ("rows", b"a,b\n1,2\n", "row 1: it has no prompt (messages or prompt); its columns are a, b: name yours with"
     " --column"),
    ("rows", b"prompt,completion\nx,y,z\n", "row 1: it has more cells than the header has names"),
    ("rows", b"PAR1 nonsense", "the rest of it: it cannot be read: "),
    ("langfuse", gzip.compress(b'{"a": 1}' * 900, mtime=0)[:-20], "the rest of it: it cannot be read: "),
    (
        "langfuse",
        orjson.dumps({"traceId": "t", "name": "tone", "value": None, "stringValue": "warm", "dataType": "CATEGORICAL"}),
        "line 1: the score 'tone' is 'warm', a category; only numbers are kept",
    ),
    ("langfuse", orjson.dumps({**GOOD["langfuse"], "startTime": "yesterday"}), "line 1: 'yesterday' is no time"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason"), REFUSALS)
def test_what_is_wrong_is_said_with_its_place(tracetune, tmp_path, name, content, reason):
    """One line on standard error for each, and the exit status says that something was left out."""
    (tmp_path / "log").write_bytes(content)
    finished = tracetune("import", "store.duckdb", "log", "--format", name)
    assert finished.status == 1
    assert f"log: {reason}" in finished.stderr


MISTAKES = [
    (("--column", "completion=answer"), "--column is for --format rows; otlp has names of its own"),
    (("--format", "rows", "--column", "answer"), "--column 'answer' is not NAME=COLUMN, such as completion=answer"),
    (("--format", "rows", "--column", "answer=b"), "a call has no 'answer' that a column could hold; it has messages,"),
]


@pytest.mark.parametrize(("options", "said"), MISTAKES)
def test_a_mapping_that_makes_no_sense_is_refused(tracetune, tmp_path, options, said):
    """Nothing is imported then."""
    (tmp_path / "log").write_bytes(b"{}")
    finished = tracetune("import", "store.duckdb", "log", *options)
    assert finished.status != 0
    assert said in finished.stderr


def test_what_is_of_no_use_yet_is_said(tracetune, tmp_path):
    """Traces without an LM call and scores of traces that are not here are kept, and counted."""
    call, module, *_, program, score = logged_program.langfuse()
    log = [module, program, {**score, "id": "score-2", "traceId": "elsewhere"}]
    (tmp_path / "log").write_bytes(b"\n".join(map(orjson.dumps, log)))
    finished = tracetune("import", "store.duckdb", "log", "--format", "langfuse")
    assert finished.status == 0
    assert "1 traces hold no LM call: nothing in them can be trained on" in finished.stderr
    assert "1 scores are of traces or calls that are not here; they count once these are imported" in finished.stderr
    (tmp_path / "rest").write_bytes(orjson.dumps(call))
    finished = tracetune("import", "store.duckdb", "rest", "--format", "langfuse")
    assert "hold no LM call" not in finished.stderr
    assert Store(tmp_path / "store.duckdb").sql("SELECT module FROM calls").rows() == [{"module": "plan"}]


def test_a_log_may_come_by_a_pipe(tracetune, tmp_path, monkeypatch):
    """`-` is standard input, whatever the format."""
    content = b"\n".join(map(orjson.dumps, logged_program.langsmith()))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert tracetune("import", "store.duckdb", "-", "--format", "langsmith").status == 0
    assert Store(tmp_path / "store.duckdb").sql("SELECT count(*) AS n FROM calls").rows() == [{"n": 4}]
