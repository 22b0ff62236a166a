"""Ingest: every line of the spool comes in once, whatever happens to it on the way."""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import resource

import orjson
import pytest
from store.spool_lines import a_rollout, gone_process, record, segment_name, span, tables_of, write_segment

from tracetune.grouping import IngestReport, Store
from tracetune.tracer import names
from tracetune.tracer.spool import Spool


@pytest.fixture
def path(tmp_path):
    """Where the store of a test stands."""
    return tmp_path / "traces.duckdb"


def rejected(path):
    """What the spool has set aside: reason and line."""
    lines = (path.parent / (path.name + ".spool") / "rejected.jsonl").read_bytes().splitlines()
    return [(entry["reason"], entry["line"]) for entry in map(orjson.loads, lines)]


def test_a_recorded_rollout_is_a_row_with_all_that_was_said_of_it(path):
    """Start, program span, end and score of a rollout become one row of `rollouts`."""
    write_segment(path, "1-1-a", *a_rollout(1))
    assert Store(path).sql("FROM rollouts").rows() == [
        {
            "rollout_id": "r1",
            "run": "try-1",
            "split": "train",
            "step": 3,
            "superseded": False,
            "rollout_index": 1,
            "program": "find",
            "example_id": "q1",
            "started_at": dt.datetime(2026, 1, 1, 0, 0, 1),
            "duration_ms": 5.0,
            "status": "ok",
            "error_type": None,
            "reward": 0.5,
            "policy_version": "try-1@2",
            "n_calls": 3,
            "input": '{"claim":"c"}',
            "output": '["a","b"]',
            "trace_id": f"{200:032x}",
        }
    ]


def test_a_recorded_call_is_a_row_with_its_exact_tokens(path):
    """A span, its place in the rollout and the endpoint's completion become one row of `calls`."""
    write_segment(path, "1-1-a", *a_rollout(1))
    assert Store(path).sql("FROM calls ORDER BY started_at LIMIT 1 OFFSET 1").rows() == [
        {
            "call_id": f"{211:016x}",
            "rollout_id": "r1",
            "run": "try-1",
            "split": "train",
            "step": 3,
            "example_id": "q1",
            "module": "hop",
            "key": "",
            "invocation": 1,
            "turn": 0,
            "choice": 0,
            "kind": "call",
            "started_at": dt.datetime(2026, 1, 1, 0, 0, 1),
            "duration_ms": 1.0,
            "status": "ok",
            "model": "policy",
            "provider": None,
            "policy_version": "try-1@3",
            "response_id": "response-211",
            "messages": '[{"role":"user","content":"who?"}]',
            "completion": "carl 211",
            "finish_reason": "stop",
            "sampling": '{"temperature":1.0,"top_p":1.0}',
            "input_tokens": None,
            "output_tokens": None,
            "prompt_token_ids": [1, 2],
            "completion_token_ids": [3, 211],
            "completion_logprobs": [-0.5, -0.25],
            "exact": True,
            "on_policy": True,
            "cached": False,
            "unordered": False,
            "truncated": False,
            "redacted": False,
            "late": False,
            "reward": 0.5,
        }
    ]


def test_a_closed_segment_is_removed_and_does_not_come_again(path):
    """After ingest the spool is empty, and ingesting again changes nothing."""
    segment = write_segment(path, "1-1-a", *a_rollout())
    store = Store(path)
    assert store.ingest() == IngestReport(spans=5, records=6, segments=1)
    before = tables_of(path)
    assert not segment.exists()
    assert store.ingest() == IngestReport()
    assert tables_of(path) == before


def test_a_process_killed_between_commit_and_removal_repeats_nothing(path):
    """A segment that is still there after its rows were committed is removed without being read again."""
    lines = a_rollout()
    segment = write_segment(path, "1-1-a", *lines)
    store = Store(path)
    store.ingest()
    before = tables_of(path)
    write_segment(path, "1-1-a", *lines)
    assert store.ingest() == IngestReport(segments=1)
    assert tables_of(path) == before
    assert not segment.exists()


def test_a_living_writers_unfinished_line_waits(path):
    """Of an open segment whose writer lives, whole lines are read, and the rest when it is whole."""
    lines = a_rollout()
    store = Store(path)
    segment = write_segment(path, f"{segment_name(gone_process())}.open", *lines[:2], lines[2][:50])
    with segment.open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert store.ingest() == IngestReport(records=2, segments=1)
        writer.write(lines[2][50:] + b"".join(lines[3:]))
        writer.flush()
        assert store.ingest() == IngestReport(spans=5, records=4, segments=1)
        assert segment.exists()
    assert store.ingest() == IngestReport(segments=1)
    assert not segment.exists()


def test_what_this_process_writes_is_there_at_once(path):
    """A record that a spool of this very process holds open is seen by the next query."""
    store, spool = Store(path), Spool(path.with_name(path.name + ".spool"))
    spool.write_record(names.RECORD_JOB, {"job_id": "1", "status": "queued"})
    assert store.sql("SELECT job_id, status FROM jobs").rows() == [{"job_id": "1", "status": "queued"}]
    spool.close()


def test_a_dead_writers_unfinished_line_is_set_aside(path):
    """A line that was cut in half is kept with its reason, and its neighbours come in."""
    lines = a_rollout()
    write_segment(path, f"{segment_name(gone_process())}.open", *lines[:-1], lines[-1][:40])
    store = Store(path)
    assert store.ingest() == IngestReport(spans=5, records=5, rejected=1, segments=1)
    ((reason, line),) = rejected(path)
    assert reason.startswith("not JSON: ")
    assert line == lines[-1][:40].decode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{}\n", "not an OTLP document: neither resourceSpans nor resourceLogs"),
        (b"[1]\n", "not an OTLP document: neither resourceSpans nor resourceLogs"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"a"}]}]}]}\n', "no 'traceId'"),
        (span("x", 1, STEP="three"), "a value of the wrong type: "),
        (record(names.RECORD_SCORE, "1", rollout_id="r0", name="reward", value="high"), "'value' of a tracetune.score"),
        (record(names.RECORD_SCORE, "1", rollout_id="r0", name="reward"), "a tracetune.score record without 'value'"),
        (record(names.RECORD_SCORE, "1", rollout_id=7, name="reward", value=1), "'rollout_id' of a tracetune.score"),
        (b'{"resourceLogs":"\xff"}\n', "not JSON: "),
        (b'"\\ud800"\n', "not JSON: "),
    ],
)
def test_a_line_that_cannot_be_read_is_set_aside_and_its_neighbours_are_kept(path, line, reason):
    """Each kind of bad line is kept with a reason that names what is wrong."""
    lines = a_rollout()
    write_segment(path, "1-1-a", *lines[:3], line, *lines[3:])
    assert Store(path).ingest() == IngestReport(spans=5, records=6, rejected=1, segments=1)
    ((said, kept),) = rejected(path)
    assert reason in said
    assert kept == line.rstrip(b"\n").decode(errors="replace")


def test_a_line_set_aside_before_a_crash_is_not_set_aside_twice(path):
    """Lines are set aside before the commit; the ingest after a crash finds them there."""
    write_segment(path, "1-1-a", b"nonsense\n")
    Store(path).ingest()
    once = rejected(path)
    path.unlink()
    write_segment(path, "1-1-a", b"nonsense\n")
    Store(path).ingest()
    assert rejected(path) == once


def test_the_same_id_is_kept_once_with_one_content_and_twice_with_two(path):
    """A span and a record that come again are counted; with another content both are kept, and counted."""
    lines = a_rollout()
    changed_span = span("find", 100, trace_id=100, ROLLOUT_ID="r0", KIND="program")
    changed_score = record(names.RECORD_SCORE, "score-r0", rollout_id="r0", name="reward", value=1)
    store = Store(path)
    write_segment(path, "1-1-a", *lines)
    store.ingest()
    write_segment(path, "2-1-a", *lines, changed_span, changed_score)
    assert store.ingest() == IngestReport(spans=1, records=1, repeated=11, conflicting=2, segments=1)
    write_segment(path, "3-1-a", changed_span, changed_score)
    assert store.ingest() == IngestReport(repeated=2, segments=1)
    assert store.sql("SELECT count(*) AS n FROM spans").rows() == [{"n": 6}]
    assert store.sql("SELECT value FROM scores ORDER BY value").rows() == [{"value": 0.0}, {"value": 1.0}]


def test_nothing_recorded_is_lost(path):
    """Attributes and fields without a column, and records of unknown names, are kept as JSON."""
    document = orjson.loads(span("find", 1, KIND="program", RUN="try-1"))
    (found,) = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    found["traceState"] = "s"
    found["attributes"].append({"key": "mine", "value": {"arrayValue": {"values": [{"intValue": "1"}]}}})
    write_segment(
        path,
        "1-1-a",
        orjson.dumps(document) + b"\n",
        record(names.RECORD_JOB, "1", job_id="j", new_field=[1]),
        record("somebody.else", "2", what="ever"),
    )
    store = Store(path)
    assert store.sql("SELECT run, attributes FROM spans").rows() == [
        {"run": "try-1", "attributes": '{"mine":[1],"otlp.traceState":"s"}'}
    ]
    assert store.sql("SELECT rest FROM jobs").rows() == [{"rest": '{"new_field":[1]}'}]
    assert store.sql("SELECT event_name, body FROM other_records").rows() == [
        {"event_name": "somebody.else", "body": '{"what":"ever"}'}
    ]


def test_a_process_may_leave_more_segments_than_files_may_be_open(path):
    """Of twelve hundred segments, more than one transaction takes, every span comes in with few descriptors."""
    for number in range(1200):
        write_segment(path, f"{number}-{number}-a", span(str(number), number + 1, KIND="tool"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 50, hard))
    try:
        report = Store(path).ingest()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert report == IngestReport(spans=1200, segments=1200)
    listed = Store(path).sql("SELECT count(DISTINCT name) AS names FROM spans").rows()
    assert listed == [{"names": 1200}]
    assert Store(path).sql("SELECT count(*) AS segments, sum(spans) AS spans FROM segments").rows() == [
        {"segments": 1200, "spans": 1200}
    ]


def test_a_document_with_many_spans_is_read_whole(path):
    """A line of a Collector's file has spans and records of many scopes; all of them come in."""
    document = orjson.loads(span("first", 1, KIND="tool"))
    second = orjson.loads(span("second", 2, KIND="tool"))
    document["resourceSpans"][0]["scopeSpans"] += second["resourceSpans"][0]["scopeSpans"]
    document["resourceLogs"] = orjson.loads(record(names.RECORD_JOB, "1", job_id="j"))["resourceLogs"]
    write_segment(path, "1-1-a", orjson.dumps(document))
    assert Store(path).ingest() == IngestReport(spans=2, records=1, segments=1)


def test_each_span_keeps_the_resource_of_its_own_line(path):
    """Lines of two processes in one file, each with its resource, are not taken for one another's."""
    first, second, third = (span(name, place, KIND="tool") for place, name in enumerate("abc", 1))
    write_segment(path, "1-1-a", first, second.replace(b'"opentelemetry"', b'"another"'), third)
    rows = Store(path).sql("SELECT name, resource LIKE '%\"another\"%' AS other FROM spans ORDER BY name").rows()
    assert [tuple(row.values()) for row in rows] == [("a", False), ("b", True), ("c", False)]


def test_a_batch_that_was_trained_on_is_saved_with_its_members(path):
    """What a step learned from is one row, and one row for each member."""
    member = {"group_id": "g", "slot": 0, "call_id": "c", "rollout_id": "r", "reward": 1.0, "advantage": 0.5}
    body = {"step": 2, "policy_version": "try-1@2", "members": [member], "left_out": {}, "report": {"loss": 0.0}}
    lines = record(names.RECORD_BATCH, "b1", **body)
    write_segment(path, "1-1-a", lines)
    write_segment(path, "2-1-a", lines)
    store = Store(path)
    assert store.sql("SELECT * FROM batch_members").rows() == [{"record_id": "b1", **member}]
    assert store.sql("SELECT record_id, step, report FROM batches").rows() == [
        {"record_id": "b1", "step": 2, "report": '{"loss":0.0}'}
    ]


def test_an_ingest_that_fails_changes_nothing(path, monkeypatch):
    """An error in the middle leaves the tables and the spool as they were."""
    segment = write_segment(path, "1-1-a", *a_rollout())
    store = Store(path)
    before = tables_of(path)
    monkeypatch.setattr("tracetune.grouping.ingest.transaction._derive", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.ingest()
    assert tables_of(path) == before
    assert segment.exists()
    assert os.listdir(segment.parent) == [segment.name]
