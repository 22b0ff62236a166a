"""Messages that an instrumentation sends as log records of their own are their call's."""

from __future__ import annotations

import itertools
import json

import orjson
import pytest
from conventions.otlp_lines import foreign_record, foreign_span
from conventions.test_hostile_spans import EVENTS, VALUES
from hypothesis import given, settings
from hypothesis import strategies as st
from store.spool_lines import tables_of, write_segment

from tracetune.grouping import IngestReport, Store
from tracetune.grouping.conventions.spans import read_events
from tracetune.grouping.export_otlp import Export

CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "policy"}
REASONS = {"gen_ai.response.finish_reasons": ["stop"]}
CALL = foreign_span("chat policy", 2, {**CHAT, **REASONS}, parent=1)
AGENT = foreign_span("agent", 1, {"gen_ai.operation.name": "invoke_agent"})
SYSTEM = foreign_record("gen_ai.system.message", {}, body={"content": "Be short."}, span_id=2, at=1)
USER = foreign_record("gen_ai.user.message", {}, body={"content": "who?"}, span_id=2, at=2)
CHOICE = foreign_record(
    "gen_ai.choice",
    {},
    body={"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ann"}},
    span_id=2,
    at=3,
)
PROMPT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "who?"}]


@pytest.fixture
def path(tmp_path):
    """Where the store of a test stands."""
    return tmp_path / "traces.duckdb"


def ingested(path, *segments):
    """The store after it took in those segments too, one after the other."""
    store = Store(path)
    (before,) = store.sql("SELECT count(*) AS n FROM segments").rows()
    for number, lines in enumerate(segments, before["n"]):
        write_segment(path, f"{number}-1-a", *lines)
        store.ingest()
    return store


def calls(store):
    """What each call says, its prompt as the messages that it is."""
    query = (
        "SELECT call_id, choice, messages, completion, finish_reason, truncated FROM calls ORDER BY started_at, choice"
    )
    rows = [tuple(row.values()) for row in store.sql(query).rows()]
    return [(*row[:2], row[2] and json.loads(row[2]), *row[3:]) for row in rows]


SPAN_ID = f"{2:016x}"
TOLD = [(SPAN_ID, 0, PROMPT, "ann", "stop", False)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_records_and_their_span_come_in_any_order(path, order):
    """Each in a transaction of its own, they give the same call."""
    lines = [AGENT + CALL, SYSTEM, USER, CHOICE]
    assert calls(ingested(path, *([lines[place]] for place in order))) == TOLD


def test_all_at_once_is_the_same_store_as_one_after_the_other(path, tmp_path):
    """Every table holds the same rows, whatever came with what."""
    lines = [SYSTEM, USER, AGENT, CALL, CHOICE]
    apart = tmp_path / "apart.duckdb"
    ingested(path, lines)
    ingested(apart, *([line] for line in reversed(lines)))
    both = [{table: rows for table, rows in tables_of(store).items() if table != "segments"} for store in (path, apart)]
    assert both[0] == both[1]


def test_what_comes_again_changes_nothing(path):
    """Neither the records nor the span make a second call, or conflict with what there is."""
    lines = [AGENT, SYSTEM, USER, CHOICE, CALL]
    store = ingested(path, lines)
    write_segment(path, "9-1-a", *lines)
    assert store.ingest() == IngestReport(repeated=5, segments=1)
    assert calls(store) == TOLD


def test_choices_go_by_their_index(path):
    """A choice that the span did not count has a row of its own; one that has not come yet says nothing."""
    second = foreign_record(
        "gen_ai.choice",
        {},
        body={"index": 1, "finish_reason": "length", "message": {"content": "bob"}},
        span_id=2,
        at=4,
    )
    store = ingested(path, [AGENT, CALL, USER, second])
    user = PROMPT[1:]
    assert calls(store) == [
        (SPAN_ID, 0, user, None, "stop", False),
        (f"{SPAN_ID}.1", 1, user, "bob", "length", False),
    ]
    assert calls(ingested(path, [CHOICE])) == [
        (SPAN_ID, 0, user, "ann", "stop", False),
        (f"{SPAN_ID}.1", 1, user, "bob", "length", False),
    ]
    assert (
        store.sql("SELECT module, invocation, turn, n_calls FROM calls JOIN rollouts USING (rollout_id)").rows()
        == [{"module": "agent", "invocation": 0, "turn": 0, "n_calls": 2}] * 2
    )


def test_a_rewarded_rollout_rewards_the_choices_too(path):
    """A row that a log record makes is settled like any other."""
    second = foreign_record("gen_ai.choice", {}, body={"index": 1, "message": {"content": "bob"}}, span_id=2)
    scored = foreign_record(
        "gen_ai.evaluation.result",
        {"gen_ai.evaluation.name": "reward", "gen_ai.evaluation.score.value": 0.5},
        span_id=1,
    )
    store = ingested(path, [AGENT, CALL, scored], [second])
    assert store.sql("SELECT choice, reward FROM calls ORDER BY choice").rows() == [
        {"choice": 0, "reward": 0.5},
        {"choice": 1, "reward": 0.5},
    ]


def test_a_span_that_says_its_messages_keeps_them(path):
    """The records beside it are kept, and change nothing."""
    said = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "me first"}]}])
    call = foreign_span("chat", 2, {**CHAT, "gen_ai.input.messages": said}, parent=1)
    expected = [(SPAN_ID, 0, [{"role": "user", "content": "me first"}], None, None, False)]
    assert calls(ingested(path, [call], [USER], [CHOICE])) == expected
    assert calls(ingested(path.with_name("other.duckdb"), [USER, CHOICE], [call])) == expected


def test_one_record_may_hold_the_whole_request(path):
    """`gen_ai.client.inference.operation.details` has prompt, system's message and answers in its attributes."""
    parts = [{"type": "text", "content": "who?"}]
    details = foreign_record(
        "gen_ai.client.inference.operation.details",
        {
            "gen_ai.input.messages": [{"role": "user", "parts": parts}],
            "gen_ai.system_instructions": [{"type": "text", "content": "Be short."}],
            "gen_ai.output.messages": [
                {"role": "assistant", "parts": [{"type": "text", "content": "ann"}], "finish_reason": "stop"}
            ],
        },
        span_id=2,
    )
    assert calls(ingested(path, [details, CALL, AGENT])) == TOLD


def test_an_older_records_name_is_one_of_its_attributes(path):
    """Before the protocol had a field for it, `event.name` said it."""
    user = foreign_record("", {"event.name": "gen_ai.user.message"}, body={"content": "who?"}, span_id=2)
    assert calls(ingested(path, [CALL, user])) == [(SPAN_ID, 0, PROMPT[1:], None, "stop", False)]


def test_messages_without_content_are_no_prompt(path):
    """An emitter that was told to keep contents to itself says only that there were messages."""
    empty = foreign_record("gen_ai.user.message", {"gen_ai.system": "openai"}, span_id=2)
    choice = foreign_record(
        "gen_ai.choice", {}, body={"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}, span_id=2
    )
    assert [row[2:5] for row in calls(ingested(path, [CALL, empty, choice]))] == [(None, None, "stop")]


def test_calls_that_stand_alone_are_rollouts_of_their_prompts_example(path):
    """Two traces of one call each with the same logged prompt are of one example, as if their spans had said it."""
    lines = []
    for trace_id, question in ((7, "who?"), (8, "who?"), (9, "what?")):
        ids = {"span_id": trace_id, "trace_id": trace_id}
        lines.append(foreign_span("chat", attributes=CHAT, **ids))
        lines.append(foreign_record("gen_ai.user.message", {}, body={"content": question}, **ids))
    said = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "who?"}]}])
    lines.append(foreign_span("chat", 10, {**CHAT, "gen_ai.input.messages": said}, trace_id=10))
    store = ingested(path, lines)
    examples = [row["example_id"] for row in store.sql("SELECT example_id FROM rollouts ORDER BY rollout_id").rows()]
    assert examples[0] == examples[1] == examples[3]
    assert examples[2] not in (*examples[:2], f"{9:032x}")
    assert [
        row["example_id"] for row in store.sql("SELECT example_id FROM calls ORDER BY rollout_id").rows()
    ] == examples


def test_deleted_rollouts_take_their_records_with_them(path):
    """No prompt of a deleted rollout is left, in whatever table; those of others stay."""
    other = [
        foreign_span("agent", 3, {"gen_ai.operation.name": "invoke_agent"}, trace_id=8),
        foreign_record("gen_ai.user.message", {}, body={"content": "kept"}, span_id=3, trace_id=8),
    ]
    lost = foreign_record("app.log", {"text": "who?"}, span_id=99)
    judged = foreign_record("gen_ai.evaluation.result", {"gen_ai.response.id": "r1", "text": "who?"})
    answered = foreign_span("chat", 4, {**CHAT, "gen_ai.response.id": "r1"}, parent=1)
    store = ingested(path, [AGENT, CALL, SYSTEM, USER, CHOICE, lost, judged, answered, *other])
    assert store.delete(f"rollout_id = '{7:032x}'") == 1
    assert store.sql("SELECT body FROM other_records").rows() == [{"body": '{"content":"kept"}'}]
    assert b"who?" not in orjson.dumps(tables_of(path), default=str)


@pytest.mark.parametrize("where", [None, "n_calls = 1"])
def test_an_exported_store_has_a_twin(path, tmp_path, where):
    """Messages leave in their records, and find their calls in the other store; back here all of it is known."""
    alone = foreign_span("chat", 4, CHAT, trace_id=8)
    asked = foreign_record("gen_ai.user.message", {}, body={"content": "what?"}, span_id=4, trace_id=8)
    second = foreign_record(
        "gen_ai.choice", {}, body={"index": 1, "message": {"content": "bob"}}, span_id=4, trace_id=8
    )
    store = ingested(path, [AGENT, CALL, SYSTEM, USER, CHOICE, alone, asked])
    ingested(path, [second] if where is None else [])
    lines = [orjson.dumps(document) + b"\n" for document in Export(store, where).documents()]
    twin = tmp_path / "twin.duckdb"
    ingested(twin, lines)
    tables, twins = tables_of(path), tables_of(twin)
    del tables["segments"], twins["segments"]
    assert twins == tables
    write_segment(path, "9-1-a", *lines)
    assert store.ingest().repeated == len(tables["spans"]) + len(tables["other_records"])


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(EVENTS), st.dictionaries(st.sampled_from(["content", "message", "role", "index",
            "tool_calls", "id", "finish_reason", "gen_ai.event.content", "gen_ai.input.messages"]), VALUES)),
        max_size=4,
    )
)  # fmt: skip
def test_no_record_breaks_the_reading(events):
    """Whatever records say, they are read or left; a prompt that is read is a list of messages."""
    reading = read_events(events)
    assert reading.messages is None or all("role" in message for message in json.loads(reading.messages))
    assert 1 <= len(reading.choices) <= 128
