"""Sampling: a rollout is recorded as a whole or not at all, and everybody agrees on which."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from traced_programs import double, double_later

from tracetune import tracer
from tracetune.errors import InvalidInput
from tracetune.testing import span_tree, spool_records
from tracetune.tracer import SpoolCounts, names
from tracetune.tracer.sampling import is_sampled

QUESTION = [{"role": "user", "content": "?"}]


@tracer.program
def ask(number: int) -> int:
    """A program with a module, a call, a nested program and a score."""
    call = tracer.LMCall.begin(QUESTION, model="m", sampling={"temperature": 1})
    assert call is not None
    with call.entered():
        pass
    call.end(choices=[tracer.Choice("!", "stop")])
    tracer.reward(number)
    return inner(number)


@tracer.program
def inner(number: int) -> int:
    """A program inside a program, which reads a generator and awaits a coroutine."""
    return sum(items(number)) + asyncio.run(double_later(number))


@tracer.module
def items(number: int) -> Iterator[int]:
    """A generator."""
    yield double(number)


def left_out(store: Path, sample: float, rollouts: int) -> set[str]:
    """The ids, of so many rollouts, of which nothing at all is in the spool."""
    ids = {f"r{number}" for number in range(rollouts)}
    with tracer.recording(store, sample=sample):
        for rollout_id in sorted(ids):
            with tracer.rollout(id=rollout_id, example_id="q1"):
                ask(1)
    found = "".join(path.read_text() for path in Path(f"{store}.spool").iterdir())
    return {rollout_id for rollout_id in ids if f'"{rollout_id}"' not in found}


def test_rollouts_are_recorded_whole_or_not_at_all(store: Path, spool: Path) -> None:
    """Of a rollout that is left out there is no span, no call, no score and no record; of the others there is all."""
    gone = left_out(store, 0.5, 40)
    kept = {f"r{number}" for number in range(40)} - gone
    assert 5 < len(gone) < 35
    trees = span_tree(spool, attributes=(names.ROLLOUT_ID,))
    assert sorted(tree["attributes"][names.ROLLOUT_ID] for tree in trees) == sorted(kept)
    shape = {"name": "ask", "children": ["chat m", "inner"]}
    assert all({"name": t["name"], "children": [c["name"] for c in t["children"]]} == shape for t in trees)
    for event in (names.RECORD_ROLLOUT, names.RECORD_ROLLOUT_CLOSED, names.RECORD_SCORE):
        assert sorted(record["rollout_id"] for record in spool_records(spool, event)) == sorted(kept)


def test_a_rollout_that_is_left_out_still_works(store: Path, spool: Path) -> None:
    """The program gets its results, and the handle what happened; the counts say how many were left out."""
    exporter = InMemorySpanExporter()
    with tracer.recording(store, sample=0, processors=[SimpleSpanProcessor(exporter)]) as recorded:
        with tracer.rollout(example_id="q1", index=3) as handle:
            assert ask(2) == 8
        assert ask(2) == 8
        assert recorded.counts == SpoolCounts(spans=0, records=0, lost=0, unsampled=2)
    rollout = handle.as_rollout()
    assert (rollout.example_id, rollout.index, rollout.program, rollout.status) == ("q1", 3, "ask", "ok")
    assert (rollout.output, rollout.reward) == (8, 2.0)
    assert [(call.module, call.completion, call.messages) for call in rollout.calls] == [("ask", "!", tuple(QUESTION))]
    assert exporter.get_finished_spans() == ()
    assert not spool.exists()


def test_a_left_out_call_sends_no_headers(store: Path) -> None:
    """The endpoint's record of it would be claimed by no call."""
    with tracer.recording(store, sample=0), tracer.rollout():
        call = tracer.LMCall.begin(QUESTION)
        assert call is not None
        assert call.headers() == {}


def test_an_error_in_a_rollout_that_is_left_out_is_the_callers(store: Path) -> None:
    """The exception comes as it was raised, and the handle knows of it."""

    @tracer.program
    def fail() -> None:
        raise KeyError("k")

    with tracer.recording(store, sample=0), pytest.raises(KeyError), tracer.rollout() as handle:
        fail()
    assert (handle.status, handle.error_type) == ("error", "KeyError")


def test_calls_outside_any_rollout_are_always_recorded(store: Path, spool: Path) -> None:
    """They are parts of no rollout."""
    with tracer.recording(store, sample=0):
        double(1)
    assert [tree["name"] for tree in span_tree(spool)] == ["double"]


def test_a_score_from_elsewhere_goes_the_way_of_its_rollout(store: Path, spool: Path) -> None:
    """Whoever knows a rollout's id, and the fraction, knows whether it was recorded."""
    gone = left_out(store, 0.5, 20)
    before = len(spool_records(spool, names.RECORD_SCORE))
    with tracer.recording(store, sample=0.5):
        for number in range(20):
            tracer.reward(1, rollout_id=f"r{number}")
        tracer.reward(1, call_id="c1")
    scores = spool_records(spool, names.RECORD_SCORE)
    assert len(scores) - before == 20 - len(gone) + 1
    assert not gone & {score["rollout_id"] for score in scores}


def test_processes_agree(store: Path, spool: Path) -> None:
    """A forked child's part of a rollout goes the way of its parent's."""
    with tracer.recording(store, sample=0.5):
        for number in range(20):
            with tracer.rollout(id=f"r{number}"):
                double(number)
                child = os.fork()
                if child == 0:
                    double(number)
                    os._exit(0)
                os.waitpid(child, 0)
    counts: dict[str, int] = {}
    for tree in span_tree(spool):
        rollout_id = tree["attributes"][names.ROLLOUT_ID]
        counts[rollout_id] = counts.get(rollout_id, 0) + 1
    assert counts == {f"r{number}": 2 for number in range(20) if is_sampled(f"r{number}", 0.5)}


def test_a_recording_inside_another_keeps_or_changes_the_fraction(store: Path) -> None:
    """By default it is the same as outside."""
    with tracer.recording(store, sample=0) as recorded:
        with tracer.recording(store, run="inner"):
            ask(1)
        assert recorded.counts.spans == 0
        with tracer.recording(store, sample=1):
            ask(1)
        assert recorded.counts.spans == 6
        ask(1)
        assert recorded.counts.spans == 6


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan"), float("inf"), "0.5", True])
def test_what_is_no_fraction_is_refused(sample: Any, store: Path) -> None:
    """The refusal says what it was, and nothing records after it."""
    with pytest.raises(InvalidInput, match=f"sample is the fraction of rollouts to record.*not {sample!r}"):
        tracer.recording(store, sample=sample).__enter__()
    assert tracer.record_call(messages=[], completion="") is None


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_keeps_all_that_a_smaller_one_kept(rollout_id: str, one: float, other: float) -> None:
    """Whatever the id."""
    assert is_sampled(rollout_id, min(one, other)) <= is_sampled(rollout_id, max(one, other))
    assert not is_sampled(rollout_id, 0)
    assert is_sampled(rollout_id, 1)


def test_the_fraction_is_what_was_asked_for() -> None:
    """Of many ids, within three standard deviations."""
    kept = sum(is_sampled(f"rollout {number}", 0.1) for number in range(20_000))
    assert abs(kept - 2000) < 130
