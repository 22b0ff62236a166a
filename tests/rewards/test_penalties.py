"""Penalties: what too many tools and too many words cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetune.errors import InvalidInput
from tracetune.rewards import length_penalty, tool_call_count, tool_penalty
from tracetune.types import Call, Rollout

ASK = {"role": "user", "content": "where is it?"}


def result(identity: str | None, content: str = "here") -> dict:
    """A tool's result, as it stands in the next prompt."""
    return {"role": "tool", "content": content} | ({"tool_call_id": identity} if identity else {})


def rollout(*prompts: list[dict], completions: tuple[str, ...] = ()) -> Rollout:
    """A rollout whose calls had these prompts."""
    texts = [*completions, *[""] * (len(prompts) - len(completions))]
    calls = [
        Call(f"c{number}", "r1", "agent", turn=number, messages=prompt, completion=text)
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    return Rollout(id="r1", example_id="q1", calls=calls)


def test_a_result_counts_once_however_often_it_is_shown():
    """Each turn of a tool loop shows all results so far again."""
    one, two = result("a"), result("b")
    assert tool_call_count(rollout([ASK], [ASK, one], [ASK, one, two])) == 2
    # A window that slides over a long history moves them.
    assert tool_call_count(rollout([ASK, one], [ASK, one, two], [ASK, two, result("c")])) == 3


def test_results_without_ids_count_by_their_place():
    """Two equal results at two places are two calls, and one that stays in its place is one."""
    same = result(None)
    assert tool_call_count(rollout([ASK, same], [ASK, same, same])) == 2


def test_ids_that_are_used_again_count_by_what_came_back():
    """Some servers call every first tool call of a response the same."""
    assert tool_call_count(rollout([ASK, result("call_0", "here")], [ASK, result("call_0", "there")])) == 2


def test_tools_cost_what_is_beyond_the_budget():
    """Within the budget nothing, beyond it the same for each."""
    used = rollout([ASK, *(result(f"t{number}") for number in range(5))])
    assert [tool_penalty(used, budget=budget, each=0.25) for budget in (0, 3, 5, 9)] == [1.25, 0.5, 0.0, 0.0]
    assert tool_penalty(rollout([ASK]), budget=0) == 0.0


def test_lengths_are_counted_as_one_wishes():
    """In characters, or by a function; of a rollout, all completions together."""
    assert length_penalty("one two three", target=2, limit=4, count=lambda text: len(text.split())) == 0.5
    talk = rollout([ASK], [ASK], completions=("x" * 60, "y" * 60))
    assert length_penalty(talk, target=100, limit=140) == 0.5


@given(st.integers(0, 400), st.integers(0, 400))
def test_longer_is_never_cheaper(short, more):
    """The penalty lies from 0 to 1 and does not fall with the length."""
    penalties = [length_penalty("x" * length, target=100, limit=300) for length in (short, short + more)]
    assert 0.0 <= penalties[0] <= penalties[1] <= 1.0


@pytest.mark.parametrize(
    "work",
    [
        lambda: tool_penalty(rollout(), budget=-1),
        lambda: tool_penalty(rollout(), budget=1, each=-0.1),
        lambda: length_penalty("", target=5, limit=5),
        lambda: length_penalty("", target=-1, limit=5),
    ],
)
def test_penalties_that_make_no_sense_are_refused(work):
    """A negative budget or cost, and a line that does not rise."""
    with pytest.raises(InvalidInput):
        work()
