"""Evaluations that an instrumentation recorded are scores."""

from __future__ import annotations

import itertools
import json

import pytest
from conventions.otlp_lines import foreign_record, foreign_span
from store.spool_lines import span, write_segment

from tracetune.grouping import IngestReport, Store

EVENT = "gen_ai.evaluation.result"
LLM = {"openinference.span.kind": "LLM", "llm.model_name": "policy", "gen_ai.response.id": "r1"}
ROLLOUT = f"{7:032x}"
TREE = [
    foreign_span("chat", 2, LLM, parent=1),
    foreign_span("weather", 1, {"openinference.span.kind": "CHAIN"}),
]


def said(value=0.75, name="reward", **more):
    """The attributes of an evaluation."""
    return {
        "gen_ai.evaluation.name": name,
        "gen_ai.evaluation.score.value": value,
        "gen_ai.evaluation.score.label": "good",
        "gen_ai.evaluation.explanation": "right town",
        **more,
    }


@pytest.fixture
def path(tmp_path):
    """Where the store of a test stands."""
    return tmp_path / "traces.duckdb"


def ingested(path, *segments):
    """The store after it took in those segments, one after the other."""
    store = Store(path)
    for number, lines in enumerate(segments):
        write_segment(path, f"{number}-1-a", *lines)
        store.ingest()
    return store


def scores(store):
    """Whom each score is of, and what it says."""
    found = store.sql("SELECT rollout_id, call_id, name, value, source, feedback, rest FROM scores ORDER BY ALL").rows()
    return [(*list(row.values())[:-1], json.loads(row["rest"]) if row["rest"] else None) for row in found]


LABEL = {"gen_ai.evaluation.score.label": "good"}
OF_CALL = (ROLLOUT, f"{2:016x}", "reward", 0.75, "otel", "right town", LABEL)
OF_ROLLOUT = (ROLLOUT, None, "reward", 0.75, "otel", "right town", LABEL)


def test_an_event_of_an_lm_span_scores_its_call(path):
    """The call has the reward, its rollout none."""
    store = ingested(path, [foreign_span("chat", 2, LLM, parent=1, events=[(EVENT, said())]), TREE[1]])
    assert scores(store) == [OF_CALL]
    assert store.sql(
        "SELECT rollouts.reward AS of_rollout, calls.reward FROM rollouts JOIN calls USING (rollout_id)"
    ).rows() == [{"of_rollout": None, "reward": 0.75}]


def test_an_event_of_another_span_scores_its_rollout(path):
    """Each event is one score; a whole number, or one that came as a text, is a number."""
    events = [(EVENT, said()), ("other", {}), (EVENT, said(1, "length")), (EVENT, said("0.5", "style"))]
    store = ingested(path, [TREE[0], foreign_span("weather", 1, {"openinference.span.kind": "CHAIN"}, events=events)])
    assert [row[:4] for row in scores(store)] == [
        (ROLLOUT, None, "length", 1.0),
        (ROLLOUT, None, "reward", 0.75),
        (ROLLOUT, None, "style", 0.5),
    ]
    assert store.sql("SELECT reward FROM rollouts").rows() == [{"reward": 0.75}]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_record_finds_its_span_whichever_comes_first(path, order):
    """A record of its own scores the call, or the rollout, of the span that it names, once that is there."""
    segments = [
        [foreign_record(EVENT, said(), span_id=2), foreign_record(EVENT, said(), span_id=1)],
        [TREE[0]],
        [TREE[1]],
    ]
    store = ingested(path, *(segments[place] for place in order))
    assert scores(store) == [OF_CALL, OF_ROLLOUT]
    assert store.sql("SELECT reward FROM rollouts").rows() == [{"reward": 0.75}]


def test_a_record_without_a_span_names_the_response(path):
    """Then the call with that response is meant."""
    record = foreign_record(EVENT, said(**{"gen_ai.response.id": "r1"}))
    assert scores(ingested(path, [record], TREE)) == [(*OF_CALL[:-1], {**LABEL, "gen_ai.response.id": "r1"})]


def test_an_evaluation_that_comes_twice_counts_once(path):
    """A line that was sent again, before or after its evaluation was settled, changes nothing."""
    lines = [*TREE, foreign_record(EVENT, said(), span_id=1)]
    lines += [foreign_span("judge", 3, parent=1, events=[(EVENT, said(1, "style"))])]
    store = ingested(path, lines)
    before = scores(store)
    write_segment(path, "9-1-a", *lines)
    assert store.ingest() == IngestReport(repeated=4, segments=1)
    assert [row[2] for row in before] == ["reward", "style"]
    assert scores(store) == before


@pytest.mark.parametrize("value", [None, "high", "NaN", float("inf"), [1], True])
def test_an_evaluation_without_a_number_is_no_score(path, value):
    """It is kept as it came, and its neighbours count."""
    store = ingested(
        path, [*TREE, foreign_record(EVENT, said(value), span_id=1), foreign_record(EVENT, said(), span_id=1)]
    )
    assert scores(store) == [OF_ROLLOUT]
    assert store.sql("SELECT count(*) AS n FROM other_records").rows() == [{"n": 2}]


def test_an_event_on_a_span_of_ours_scores_its_rollout(path):
    """What a program says of its current span in OpenTelemetry's own way counts as well."""
    document = json.loads(span("find", 1, KIND="program", ROLLOUT_ID="r1", EXAMPLE_ID="q1"))
    (found,) = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    theirs = json.loads(foreign_span("x", 1, events=[(EVENT, said())]))
    found["events"] = theirs["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["events"]
    store = ingested(path, [json.dumps(document, separators=(",", ":")).encode() + b"\n"])
    assert scores(store) == [("r1", *OF_ROLLOUT[1:])]
