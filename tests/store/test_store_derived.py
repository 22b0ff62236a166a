"""What a store works out for itself: places, claims, rewards and ends of rollouts."""

from __future__ import annotations

import os

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from store.spool_lines import a_rollout, record, span, write_segment

from tracetune.grouping import Store
from tracetune.tracer import names
from tracetune.tracer.spool import Spool
from tracetune.types import Example


@pytest.fixture
def path(tmp_path):
    """Where the store of a test stands."""
    return tmp_path / "traces.duckdb"


def values(store, query):
    """A query's rows as tuples."""
    return [tuple(row.values()) for row in store.sql(query).rows()]


def call(span_id, **attributes):
    """An LM span of rollout r1 whose completion is `text <id>`."""
    said = {"KIND": "lm", "ROLLOUT_ID": "r1", "MODULE": "hop", "KEY": "", "EXECUTION": "e1", "INVOCATION": 0, "TURN": 0}
    output = f'[{{"role":"assistant","parts":[{{"type":"text","content":"text {span_id}"}}],"finish_reason":"stop"}}]'
    return span("chat", span_id, at=span_id, **{**said, "OUTPUT_MESSAGES": output, **attributes})


def completion(record_id, **body):
    """An endpoint's record of one choice."""
    tokens = {"prompt_token_ids": [1], "completion_token_ids": [2], "completion_logprobs": [-1.0], "choice": 0}
    return record(names.RECORD_COMPLETION, record_id, **{**tokens, "sampling": {"temperature": 1.0}, **body})


def test_invocations_are_dense_over_the_executions_that_made_a_call(path):
    """An execution that called nothing takes no number; a retry is a second turn."""
    write_segment(path, "1-1-a", *a_rollout())
    assert values(Store(path), "SELECT invocation, turn FROM calls ORDER BY started_at") == [(0, 0), (1, 0), (1, 1)]


@settings(max_examples=3)
@given(order=st.permutations(range(4)))
def test_invocations_follow_the_order_of_entry_whenever_they_arrive(tmp_path_factory, order):
    """A call that arrives later but was entered earlier moves the others up."""
    path = tmp_path_factory.mktemp("order") / "traces.duckdb"
    store = Store(path)
    for place, ordinal in enumerate(order):
        write_segment(path, f"{place}-1-a", call(10 - ordinal, EXECUTION=f"e{ordinal}", INVOCATION=3 * ordinal))
        store.ingest()
    assert values(store, "SELECT call_id, invocation FROM calls ORDER BY invocation") == [
        (f"{10 - ordinal:016x}", ordinal) for ordinal in range(4)
    ]


@settings(max_examples=25)
@given(
    recorded=st.lists(st.tuples(*3 * [st.integers(0, 2)]), min_size=2, max_size=7),
    first=st.integers(0, 7),
)
# One is missing: of invocations, of turns; then one stands twice in place of another.
@example(recorded=[(0, 0, 0), (1, 2, 0)], first=2)
@example(recorded=[(0, 0, 0), (0, 0, 2)], first=2)
@example(recorded=[(0, 0, 0), (1, 0, 0), (2, 2, 0)], first=3)
@example(recorded=[(0, 0, 0), (0, 0, 0), (0, 0, 2)], first=3)
# What arrived first was numbered before the one that was entered before it.
@example(recorded=[(0, 1, 0), (1, 0, 0)], first=1)
@example(recorded=[(0, 0, 1), (0, 0, 0)], first=1)
# The calls of one execution say different invocations.
@example(recorded=[(0, 0, 0), (0, 1, 1)], first=2)
def test_whatever_ordinals_were_recorded_they_are_dense_in_that_order(tmp_path_factory, recorded, first):
    """Executions are numbered as they were entered, and the calls of each as they were made; of equals the earlier."""
    path = tmp_path_factory.mktemp("dense") / "traces.duckdb"
    store = Store(path)
    lines = [
        call(number, EXECUTION=f"e{execution}", INVOCATION=entered, TURN=turn)
        for number, (execution, entered, turn) in enumerate(recorded, start=1)
    ]
    for part, arriving in enumerate((lines[:first], lines[first:])):
        write_segment(path, f"{part}-1-a", *arriving)
        store.ingest()
    by_execution: dict[int, list[tuple[int, int, int]]] = {}
    for number, (execution, entered, turn) in enumerate(recorded, start=1):
        by_execution.setdefault(execution, []).append((turn, number, entered))
    in_order = sorted(
        (min(entered for _, _, entered in made), min(number for _, number, _ in made), sorted(made))
        for made in by_execution.values()
    )
    assert values(store, "SELECT call_id, invocation, turn FROM calls ORDER BY call_id") == sorted(
        (f"{number:016x}", invocation, turn)
        for invocation, (_, _, made) in enumerate(in_order)
        for turn, (_, number, _) in enumerate(made)
    )


def test_keys_and_reward_functions_are_numbered_apart(path):
    """Another key, and what a reward function calls, begin at invocation 0."""
    write_segment(
        path,
        "1-1-a",
        call(1),
        call(2, EXECUTION="e2", INVOCATION=0, KEY="left"),
        call(3, EXECUTION="e3", INVOCATION=5, CALL_KIND="score"),
    )
    assert values(Store(path), "SELECT key, kind, invocation FROM calls ORDER BY call_id") == [
        ("", "call", 0),
        ("left", "call", 0),
        ("", "score", 0),
    ]


def test_of_two_spans_that_report_one_call_the_inner_counts(path):
    """An LM span around another is no call, and takes no turn."""
    write_segment(path, "1-1-a", call(1, TURN=0), call(2, TURN=1, LM_PARENT=f"{1:016x}"), call(3, TURN=2))
    assert values(Store(path), "SELECT completion, turn FROM calls ORDER BY turn") == [("text 2", 0), ("text 3", 1)]


def test_what_was_worked_out_for_an_outer_span_is_undone_when_the_inner_one_arrives(path):
    """A span that was taken for a cached call leaves no trace of it once a deeper span reports the call."""
    store = Store(path)
    write_segment(path, "1-1-a", call(1, RESPONSE_ID="same"), call(2, RESPONSE_ID="same", TURN=1))
    store.ingest()
    write_segment(path, "2-1-a", call(3, LM_PARENT=f"{1:016x}", TURN=1))
    assert values(store, "SELECT completion, turn, cached FROM calls ORDER BY turn") == [
        ("text 2", 0, False),
        ("text 3", 1, False),
    ]
    assert values(store, "SELECT shadowed, turn, cached FROM call_rows WHERE shadowed") == [(True, 0, False)]


def test_choices_of_one_request_are_calls_that_share_their_place(path):
    """Each choice has its own text, tokens and id, and the invocation and turn of its request."""
    store = Store(path)
    choices = [
        {
            "module": "hop",
            "choice": number,
            "completion": text,
            "finish_reason": "stop",
            "prompt_token_ids": [1],
            "completion_token_ids": [number],
            "response_id": "r",
        }
        for number, text in enumerate(["ann", "bob"])
    ]
    store.add_rollouts([{"example_id": "q", "calls": [*choices, {"module": "hop", "completion": "carl"}]}])
    rows = values(
        store, "SELECT call_id, invocation, turn, choice, completion, completion_token_ids FROM calls ORDER BY ALL"
    )
    first = rows[0][0] if rows[1][0].startswith(rows[0][0]) else rows[1][0]
    assert sorted(row[1:] for row in rows) == [
        (0, 0, 0, "ann", [0]),
        (0, 0, 1, "bob", [1]),
        (1, 0, 0, "carl", None),
    ]
    assert {row[0] for row in rows if row[1] == 0} == {first, f"{first}.1"}


def test_a_call_claims_its_completion_by_call_id_and_else_by_response_id(path):
    """The header's call id decides; without one, the response id; a resent request has the answer the client saw."""
    write_segment(
        path,
        "1-1-a",
        completion("c1", call_id=f"{1:016x}", response_id="lost", text="an answer that never arrived"),
        completion("c2", call_id=f"{1:016x}", response_id="seen", completion_token_ids=[5]),
        completion("c3", response_id="plain", completion_token_ids=[6], sampling={"temperature": 0.0}),
        completion("c4", response_id="nobody's"),
        call(1, RESPONSE_ID="seen"),
        call(2, RESPONSE_ID="plain", TURN=1),
        call(3, RESPONSE_ID="text only", TURN=2),
    )
    assert values(Store(path), "SELECT completion_token_ids, exact, on_policy, sampling FROM calls ORDER BY turn") == [
        ([5], True, True, '{"temperature":1.0}'),
        ([6], True, False, '{"temperature":0.0}'),
        (None, False, False, None),
    ]


@pytest.mark.parametrize("completion_first", [True, False])
def test_a_completion_is_claimed_whichever_comes_first(path, completion_first):
    """Endpoint and program write segments of their own, which may be read in either order."""
    lines = [completion("c1", call_id=f"{1:016x}", response_id="a"), call(1, RESPONSE_ID="a")]
    store = Store(path)
    for place, line in enumerate(lines if completion_first else lines[::-1]):
        write_segment(path, f"{place}-1-a", line)
        store.ingest()
    assert values(store, "SELECT exact, completion_token_ids FROM calls") == [(True, [2])]


def test_a_call_cut_off_before_its_answer_has_the_endpoints_text(path):
    """What the program never received is there as the endpoint recorded it."""
    write_segment(
        path,
        "1-1-a",
        completion("c1", call_id=f"{1:016x}", response_id="a", text="half", finish_reason="cancelled"),
        span("chat", 1, KIND="lm", ROLLOUT_ID="r1", MODULE="hop", STATUS="error", ERROR_TYPE="TimeoutError"),
    )
    assert values(Store(path), "SELECT completion, finish_reason, response_id, status, exact FROM calls") == [
        ("half", "cancelled", "a", "error", True)
    ]


def test_a_response_that_was_seen_before_is_cached(path):
    """The later call of two with one response is marked, whichever comes in first."""
    store = Store(path)
    for span_id in (2, 1, 3):
        write_segment(path, f"{span_id}-1-a", call(span_id, RESPONSE_ID="same", TURN=span_id))
        store.ingest()
    assert values(store, "SELECT turn, cached FROM calls ORDER BY turn") == [(0, False), (1, True), (2, True)]


def test_the_latest_reward_counts_and_a_call_may_have_its_own(path):
    """A call earns its rollout's latest reward, or its own; scores of other names or of modules count for neither."""
    write_segment(path, "1-1-a", *a_rollout(1))
    store = Store(path)
    store.reward("r1", 0.25)
    store.reward("r1", 0.75, feedback="better")
    store.reward("r1", 0.1, name="length")
    store.reward("r1", 0.2, module="hop")
    store.reward("r1", -1, call_id=f"{210:016x}")
    assert values(store, "SELECT reward FROM rollouts") == [(0.75,)]
    assert values(store, "SELECT reward FROM calls ORDER BY call_id") == [(-1.0,), (0.75,), (0.75,)]


@pytest.mark.parametrize("form", ["rows", "arrow", "pandas", "polars"])
def test_scores_may_come_from_a_table(path, form):
    """Rows, Arrow tables and data frames score as well."""
    write_segment(path, "1-1-a", *a_rollout(0), *a_rollout(1))
    table = pa.table({"rollout_id": ["r0", "r1"], "value": [0.5, 0.25]})
    tables = {"rows": table.to_pylist, "arrow": lambda: table, "pandas": table.to_pandas}
    polars = pytest.importorskip("polars")
    store = Store(path)
    assert store.rewards(tables.get(form, lambda: polars.from_arrow(table))()) == 2
    assert values(store, "SELECT rollout_id, reward FROM rollouts ORDER BY ALL") == [("r0", 0.5), ("r1", 0.25)]


def test_steps_that_were_done_again_are_superseded(path):
    """Rollouts of the run from that step on, begun before the record, no longer count; later ones do."""
    store = Store(path)
    write_segment(
        path,
        "1-1-a",
        *a_rollout(0),
        record(names.RECORD_SUPERSEDE, "s", at=500_000_000, run="try-1", from_step=3),
        *a_rollout(1),
        record(names.RECORD_SUPERSEDE, "t", at=5_000_000_000, run="try-1", from_step=4),
        record(names.RECORD_SUPERSEDE, "u", at=5_000_000_000, run="try-2", from_step=0),
    )
    assert values(store, "SELECT rollout_id, superseded FROM rollouts ORDER BY ALL") == [("r0", True), ("r1", False)]
    assert values(store, "SELECT DISTINCT rollout_id FROM group_members") == [("r1",)]


def test_a_rollout_runs_until_its_process_is_gone(path):
    """Begun and not ended: NULL while the writer lives, interrupted after, and what comes later is still believed."""
    store, spool = Store(path), Spool(path.with_name(path.name + ".spool"))
    spool.write_record(names.RECORD_ROLLOUT, {"rollout_id": "r1", "program": "find", "pid": os.getpid()})
    assert values(store, "SELECT status FROM rollouts") == [(None,)]
    spool.close()
    assert values(store, "SELECT status FROM rollouts") == [("interrupted",)]
    write_segment(path, "9-1-a", record(names.RECORD_ROLLOUT_CLOSED, "e", rollout_id="r1", status="ok"))
    assert values(store, "SELECT status FROM rollouts") == [("ok",)]


def test_a_rollout_closed_from_outside_keeps_the_status_it_was_given(path):
    """A program that ends after its timeout does not make its rollout ok."""
    write_segment(
        path,
        "1-1-a",
        record(names.RECORD_ROLLOUT, "s", rollout_id="r1", program="find"),
        record(names.RECORD_ROLLOUT_CLOSED, "e", at=2_000_000, rollout_id="r1", status="timeout"),
        span("find", 1, KIND="program", ROLLOUT_ID="r1", LATE=True, lasts=9_000_000, OUTPUT='"late"'),
    )
    assert values(Store(path), "SELECT status, output, duration_ms FROM rollouts") == [("timeout", None, 2.0)]


def test_a_trace_without_a_rollout_is_one(path):
    """Foreign spans: the trace is the rollout, its root's input the example, the nearest decorator the module."""
    output = '[{"role":"assistant","parts":[{"type":"text","content":"hi"}]}]'
    foreign = {"scope": "another", "trace_id": 7}
    write_segment(
        path,
        "1-1-a",
        span("chat", 4, parent=3, OPERATION="chat", REQUEST_MODEL="m", OUTPUT_MESSAGES=output, **foreign),
        span("http", 3, parent=2, **foreign),
        span("write_query", 2, parent=1, KIND="module", MODULE="write_query", **foreign),
        span("chat", 5, parent=1, OPERATION="chat", OUTPUT_MESSAGES=output, **foreign),
    )
    store = Store(path)
    before = values(store, "SELECT module FROM calls ORDER BY call_id")
    write_segment(path, "2-1-a", span("handle", 1, INPUT='{"b": 1, "a": 2}', lasts=3_000_000, **foreign))
    assert before == [("write_query",), (None,)]
    assert values(store, "SELECT rollout_id, module, invocation, completion FROM calls ORDER BY call_id") == [
        (f"{7:032x}", "write_query", 0, "hi"),
        (f"{7:032x}", "handle", 0, "hi"),
    ]
    assert values(store, "SELECT rollout_id, program, example_id, status, n_calls, duration_ms FROM rollouts") == [
        (f"{7:032x}", "handle", Example.of({"a": 2, "b": 1}).id, "ok", 2, 3.0)
    ]


def test_a_trace_without_a_call_is_no_rollout(path):
    """Spans of a web server alone make no rollout."""
    write_segment(path, "1-1-a", span("GET /", 1, scope="another"))
    assert values(Store(path), "SELECT count(*) FROM rollouts") == [(0,)]
