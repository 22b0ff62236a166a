"""Rollouts: their identity, their end, what is said of them, and who may still call a model."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tracetune import tracer
from tracetune.errors import FormatError, InvalidInput, InvalidReward, RolloutClosed, TracetuneError, TracetuneWarning
from tracetune.testing import deterministic, span_tree, spool_records
from tracetune.tracer import LMCall, names
from tracetune.tracer.processes import this_process
from tracetune.types import Call, Example, Policy, Rollout, Score

PROMPT = [{"role": "user", "content": "who?"}]
POLICY = Policy("http://127.0.0.1:1/v1", "key", "policy", "try-1@4")


def say(completion: str) -> str | None:
    """One LM call."""
    return tracer.record_call(messages=PROMPT, completion=completion, model="tiny")


@tracer.module
def hop(number: int) -> str:
    """A module of two turns."""
    say(f"try {number}")
    say(f"hop {number}")
    return f"hop {number}"


@tracer.program
def find(question: str, hops: int = 2) -> str:
    """A program that calls a module several times, and once a model outside any."""
    trail = [hop(number) for number in range(hops)]
    say(question)
    return ",".join(trail)


def test_a_rollout_in_memory(store: Path) -> None:
    """The handle holds the rollout as reward and credit functions receive it."""
    with (
        deterministic(tick=500_000),
        tracer.recording(store, run="try-1", split="train", step=4, policy=POLICY),
        tracer.rollout(example_id="q1", id="r1", index=3) as handle,
    ):
        find("who is ann's friend?", 1)
        tracer.reward(0.5)

    def call(number: str, module: str, turn: int, completion: str) -> Call:
        return Call(number.rjust(16, "0"), "r1", module, turn=turn, messages=tuple(PROMPT), completion=completion)

    assert handle.as_rollout() == Rollout(
        id="r1",
        example_id="q1",
        run="try-1",
        split="train",
        step=4,
        index=3,
        program="find",
        output="hop 0",
        reward=0.5,
        duration_ms=handle.as_rollout().duration_ms,
        policy_version="try-1@4",
        calls=(
            call("5", "hop", 0, "try 0"),
            call("6", "hop", 1, "hop 0"),
            call("7", "find", 0, "who is ann's friend?"),
        ),
    )
    assert 0 < handle.as_rollout().duration_ms < 20


def test_what_is_recorded_of_a_rollout(store: Path, spool: Path) -> None:
    """Its start says what it is, its end how it went, and a score what it was worth."""
    with tracer.recording(store, run="try-1"):
        with tracer.rollout(example_id="q1", id="r1", index=3, split="val", step=4, policy=POLICY):
            find("who?", hops=1)
            tracer.reward(Score(0.5, "close", {"hop": 1.0}))
        tracer.reward(1, rollout_id="r1", name="length", source="judge")
    (started,) = spool_records(spool, names.RECORD_ROLLOUT)
    assert started.pop("process") == str(this_process())
    assert started.pop("pid") == os.getpid()
    identity = {"rollout_id": "r1", "run": "try-1", "split": "val", "step": 4}
    assert started == identity | {
        "index": 3,
        "program": "find",
        "example_id": "q1",
        "input": {"question": "who?", "hops": 1},
        "policy_version": "try-1@4",
    }
    assert spool_records(spool, names.RECORD_ROLLOUT_CLOSED) == [
        {"rollout_id": "r1", "status": "ok", "error_type": None, "output": "hop 0"}
    ]
    score = {"rollout_id": "r1", "call_id": None, "module": None, "name": "reward", "source": "program", "feedback": ""}
    assert spool_records(spool, names.RECORD_SCORE) == [
        score | {"value": 0.5, "feedback": "close"},
        score | {"value": 1.0, "module": "hop"},
        score | {"value": 1.0, "name": "length", "source": "judge"},
    ]


def test_a_program_outside_any_block_is_a_rollout_of_its_own(store: Path, spool: Path) -> None:
    """Its id is random, its example's the one that the same inputs have as an `Example`, and its span is its end."""
    with tracer.recording(store):
        find("who?")
        find(question="who?")
    first, second = spool_records(spool, names.RECORD_ROLLOUT)
    assert first["rollout_id"] != second["rollout_id"]
    assert first["example_id"] == second["example_id"] == Example.of({"inputs": {"question": "who?"}}).id
    assert spool_records(spool, names.RECORD_ROLLOUT_CLOSED) == []
    trees = span_tree(spool, attributes=(names.ROLLOUT_ID,))
    assert [tree["attributes"] for tree in trees] == [
        {names.ROLLOUT_ID: record["rollout_id"]} for record in (first, second)
    ]


def test_inputs_that_json_cannot_express_have_example_ids_of_their_own(store: Path, spool: Path) -> None:
    """Two rollouts on such inputs are never taken for the same example."""

    @tracer.program
    def show(value: Any) -> str:
        return "shown"

    with tracer.recording(store):
        show(object())
        show(object())
    first, second = (record["example_id"] for record in spool_records(spool, names.RECORD_ROLLOUT))
    assert first != second
    assert first.startswith("unserialisable-")


class Unwell(Exception):
    """An error of the program's own."""


@pytest.mark.parametrize(
    ("error", "status", "error_type"),
    [
        (Unwell("oh"), "error", "test_rollouts.Unwell"),
        (FormatError("no answer"), "format_error", "tracetune.errors.FormatError"),
        (KeyboardInterrupt(), "error", "KeyboardInterrupt"),
    ],
    ids=["error", "format error", "interrupt"],
)
@pytest.mark.parametrize("is_caught", [False, True])
def test_a_program_that_raises(
    error: BaseException, status: str, error_type: str, is_caught: bool, store: Path, spool: Path
) -> None:
    """The rollout ends with the program's error, whoever catches it, and keeps the calls it made."""

    @tracer.program
    def fail() -> None:
        hop(0)
        raise error

    catcher = pytest.raises(type(error))
    with tracer.recording(store):
        if is_caught:
            with tracer.rollout(id="r1") as handle, catcher as caught:
                fail()
        else:
            with catcher as caught, tracer.rollout(id="r1") as handle:
                fail()
    assert caught.value is error
    (closed,) = spool_records(spool, names.RECORD_ROLLOUT_CLOSED)
    assert closed["error_type"].endswith(error_type)
    assert closed == {"rollout_id": "r1", "status": status, "error_type": closed["error_type"], "output": None}
    assert (handle.status, handle.error_type, len(handle.calls)) == (status, closed["error_type"], 2)
    (tree,) = span_tree(spool, attributes=(names.STATUS,))
    assert tree["attributes"] == {names.STATUS: status}


def test_an_error_after_the_program_is_not_the_programs(store: Path) -> None:
    """Scoring code that raises inside the block leaves the rollout as the program left it."""
    with tracer.recording(store):
        with pytest.raises(InvalidReward, match="must be a finite number"), tracer.rollout() as handle:
            tracer.reward(float(find("who?", 0) or "nan"))
        with pytest.raises(Unwell), tracer.rollout() as without_program:
            raise Unwell
    assert (handle.status, without_program.status) == ("ok", "error")


def test_closing_from_outside(store: Path, spool: Path) -> None:
    """After a timeout the rollout's end stands, its next call raises, and what ends later is marked late."""
    reached, closed = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    @tracer.module
    def linger() -> None:
        say("in time")
        reached.set()
        assert closed.wait(60)
        say("too late")
        LMCall.begin(PROMPT)

    @tracer.program
    def slow() -> None:
        linger()

    def run() -> None:
        try:
            with tracer.rollout(id="r1") as handle:
                handles.append(handle)
                slow()
        except RolloutClosed as error:
            raised.append(error)

    handles: list[tracer.RolloutHandle] = []
    with tracer.recording(store):
        thread = threading.Thread(target=run)
        thread.start()
        assert reached.wait(60)
        handles[0].close("timeout")
        handles[0].close("error", "Other")
        closed.set()
        thread.join()
    assert [str(error) for error in raised] == [
        "rollout r1 was closed with status timeout; it can't call a model any more"
    ]
    assert spool_records(spool, names.RECORD_ROLLOUT_CLOSED) == [
        {"rollout_id": "r1", "status": "timeout", "error_type": None, "output": None}
    ]
    assert (handles[0].status, [call.completion for call in handles[0].calls]) == ("timeout", ["in time"])

    def late(node: dict[str, Any]) -> Any:
        return node["name"], node["attributes"].get(names.LATE), [late(child) for child in node["children"]]

    (tree,) = span_tree(spool)
    assert late(tree) == ("slow", True, [("linger", True, [("chat tiny", None, []), ("chat tiny", True, [])])])


def test_a_status_that_does_not_exist_is_refused() -> None:
    """The refusal lists those that do."""
    with tracer.rollout() as handle, pytest.raises(InvalidInput, match="timeout, interrupted, not 'late'"):
        handle.close("late")


def test_scoring_calls_models_for_a_rollout_that_has_ended(store: Path, spool: Path) -> None:
    """They are the rollout's, in its trace, of kind score, not late, and not among its calls."""
    with tracer.recording(store):
        with tracer.rollout(id="r1") as handle:
            find("who?", 0)
        handle.close("timeout")
        with tracer.scoring(handle):
            call = LMCall.begin(PROMPT, model="judge")
            assert call is not None
            call.end(choices=[tracer.Choice("good", "stop")])
            hop(0)
    (tree,) = span_tree(spool, attributes=(names.CALL_KIND, names.ROLLOUT_ID, names.LATE))
    score = {names.CALL_KIND: "score", names.ROLLOUT_ID: "r1"}
    assert tree["children"][1:] == [
        {"name": "chat judge", "attributes": score, "children": []},
        {
            "name": "hop",
            "attributes": score,
            "children": [{"name": "chat tiny", "attributes": score, "children": []}] * 2,
        },
    ]
    assert [call.completion for call in handle.calls] == ["who?"]


def test_several_programs_in_one_block_are_one_rollout(store: Path, spool: Path) -> None:
    """The first is the one that the rollout is of; the others are parts of it."""
    with tracer.recording(store), tracer.rollout(id="r1") as handle:
        find("one", 1)
        find("two", 1)
    (started,) = spool_records(spool, names.RECORD_ROLLOUT)
    assert started["input"] == {"question": "one", "hops": 1}
    assert (handle.output, len(handle.calls)) == ("hop 0", 6)
    trees = span_tree(spool, attributes=(names.ROLLOUT_ID, names.INVOCATION))
    assert [tree["attributes"] for tree in trees] == [{names.ROLLOUT_ID: "r1", names.INVOCATION: n} for n in (0, 1)]


async def test_rollouts_side_by_side_do_not_mix(store: Path, spool: Path) -> None:
    """Concurrent rollouts each have their own calls and their own numbering."""

    @tracer.program
    async def think(name: str) -> str:
        for _ in range(3):
            await asyncio.sleep(0)
            hop(0)
        return name

    async def run(name: str) -> tracer.RolloutHandle:
        with tracer.rollout(example_id="q", id=name) as handle:
            await think(name)
        return handle

    with tracer.recording(store):
        handles = await asyncio.gather(*(run(name) for name in "abc"))
    for handle in handles:
        assert {call.rollout_id for call in handle.calls} == {handle.id}
        assert [(call.invocation, call.turn) for call in handle.calls] == [(i, t) for i in range(3) for t in range(2)]
    assert all(names.UNORDERED not in tree["attributes"] for tree in span_tree(spool))


def test_the_policy_in_force() -> None:
    """The nearest rollout or recording says which it is; where there is none, what to do."""
    with pytest.raises(TracetuneError, match="no policy is in force here; call the program from"):
        tracer.policy()
    with tracer.rollout(policy=POLICY):
        assert tracer.policy() is POLICY
        with tracer.rollout():
            assert tracer.policy() is POLICY


def test_rewards_are_checked_whether_or_not_anything_records(store: Path) -> None:
    """A reward that is no number, and one that nothing says what it is for, are refused."""
    tracer.reward(1)
    with pytest.raises(InvalidReward):
        tracer.reward("good")
    with tracer.recording(store), pytest.raises(InvalidInput, match="there is no rollout here to score"):
        tracer.reward(1)


def test_calls_inside_calls(store: Path, spool: Path) -> None:
    """Two instrumentations' views of one call share its turn, the inner naming the outer; only the inner counts."""
    with tracer.recording(store), tracer.rollout() as handle:
        outer = LMCall.begin(PROMPT, model="outer")
        assert outer is not None
        with outer.entered():
            say("inner")
        outer.end(choices=[tracer.Choice("inner")])
        say("next")
    (tree, following) = span_tree(spool, attributes=(names.TURN, names.LM_PARENT))
    assert tree["attributes"] == {names.TURN: 0}
    assert tree["children"][0]["attributes"] == {names.TURN: 0, names.LM_PARENT: outer.id}
    assert following["attributes"] == {names.TURN: 1}
    assert [call.completion for call in handle.calls] == ["inner", "next"]


def test_messages_that_are_none_do_not_reach_the_program(store: Path) -> None:
    """A prompt that can't be recorded is warned of, and the program goes on."""
    with tracer.recording(store) as recorded, pytest.warns(TracetuneWarning, match="an LM call could not be recorded"):
        assert tracer.record_call(messages=["who?"], completion="ann") is None  # type: ignore[list-item]
    assert recorded.counts.spans == 0
