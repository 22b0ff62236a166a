"""Rows: what is imitated, what is compared, and what is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from row_batches import QUESTION, answer, batch_of, batches, said

from tracetune.errors import InvalidInput
from tracetune.rows import Rows, kto_rows, preference_rows, supervised_rows
from tracetune.types import GroupBatch

SEARCH = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"query": "ann"}'}}
KINDS: list[Callable[[GroupBatch], Rows]] = [
    supervised_rows,
    lambda batch: supervised_rows(batch, select="above"),
    lambda batch: supervised_rows(batch, select="weighted"),
    preference_rows,
    lambda batch: preference_rows(batch, form="trl", margin=0.5),
    kto_rows,
]


def conversation(text: str) -> list[dict[str, object]]:
    """The question, demos included, and an answer."""
    return [*QUESTION, said(text)]


def test_the_best_of_each_group_is_imitated():
    """A group gives its best member, the first of several, after the prompt as it was sent; equal rows are one."""
    batch = batch_of(
        [answer("5", 0.0), answer("4", 1.0), answer("four", 1.0)],
        [answer("3", 0.25), answer("2", -1.0)],
        [answer("4", 1.0)],
        [],
    )
    assert supervised_rows(batch) == Rows(
        [{"messages": conversation("4")}, {"messages": conversation("3")}], {"duplicate": 1, "not_best": 3}
    )


def test_all_calls_of_the_best_trajectory_are_imitated():
    """Where trajectories are compared, the best one's calls are chosen together, whatever came between them."""
    members = [
        answer("a", 0.0, trajectory=0),
        answer("b", 1.0, trajectory=1),
        answer("c", 0.0, trajectory=0),
        answer("d", 1.0, trajectory=1),
        answer("e", 1.0, trajectory=2),
    ]
    assert supervised_rows(batch_of(members, unit="trajectory")) == Rows(
        [{"messages": conversation("b")}, {"messages": conversation("d")}], {"not_best": 3}
    )


def test_members_above_a_threshold_are_imitated():
    """Above means above: the threshold itself is not."""
    batch = batch_of([answer("4", 1.0, 0.9), answer("5", 1.0, 0.5), answer("6", 0.0, -0.7)])
    assert supervised_rows(batch, select="above", threshold=0.5) == Rows(
        [{"messages": conversation("4")}], {"not_above": 2}
    )


def test_weights_are_the_sum_of_what_equal_rows_were_worth():
    """Each row has its advantage beside the messages, of either sign; what cancels out is left out."""
    batch = batch_of(
        [answer("4", 1.0, 0.5), answer("4", 1.0, 0.75), answer("5", 0.0, -1.25)],
        [answer("4", 0.0, -0.25), answer("6", 1.0, 0.25), answer("6", 0.0, -0.25), answer("7", 0.5, 0.0)],
    )
    assert supervised_rows(batch, select="weighted") == Rows(
        [{"messages": conversation("4"), "weight": 1.0}, {"messages": conversation("5"), "weight": -1.25}],
        {"duplicate": 2, "zero_advantage": 3},
    )


def test_the_best_is_paired_with_the_worst():
    """Pairs go from the outside in while rewards differ by the margin; the one in the middle has no partner."""
    members = [answer(str(place), reward) for place, reward in enumerate([0.5, 1.0, 0.0, 0.75, 0.25])]
    both = {
        "input": {"messages": QUESTION},
        "preferred_output": [said("1")],
        "non_preferred_output": [said("2")],
    }
    inner = {**both, "preferred_output": [said("3")], "non_preferred_output": [said("4")]}
    assert preference_rows(batch_of(members)) == Rows([both, inner], {"odd": 1})
    assert preference_rows(batch_of(members), margin=0.5) == Rows([both, inner], {"odd": 1})
    assert preference_rows(batch_of(members), margin=0.75) == Rows([both], {"odd": 1, "too_close": 2})


def test_only_answers_to_one_prompt_are_compared():
    """Members whose prompts differ by anything are never a pair; the order of an object's names is nothing."""
    reordered = [{name: message[name] for name in reversed(message)} for message in QUESTION]
    batch = batch_of(
        [answer("4", 1.0), answer("5", 0.0, messages=QUESTION[1:]), answer("6", 0.0, messages=reordered)],
        [answer("7", 0.0)],
    )
    row = {"prompt": QUESTION, "chosen": [said("4")], "rejected": [said("6")]}
    assert preference_rows(batch, form="trl") == Rows([row], {"no_partner": 2})


def test_a_completion_is_never_compared_with_itself():
    """Equal completions are one, worth the mean of their rewards; a pair that comes twice is there once."""
    group = [answer("4", 1.0), answer("5", 1.0), answer("5", 0.0), answer("4", 1.0)]
    row = {"prompt": QUESTION, "chosen": [said("4")], "rejected": [said("5")]}
    assert preference_rows(batch_of(group, group), form="trl") == Rows([row], {"duplicate": 6})
    assert preference_rows(batch_of(group), margin=0.75) == Rows([], {"duplicate": 2, "too_close": 2})


def test_a_label_says_whether_a_completion_beat_its_groups():
    """A KTO row is true where the advantages of a completion sum to more than 0, false where to less."""
    batch = batch_of([answer("4", 1.0, 0.5), answer("5", 0.0, -0.5)], [answer("5", 1.0, 0.25), answer("6", 0.0, 0.0)])
    assert kto_rows(batch) == Rows(
        [
            {"prompt": QUESTION, "completion": [said("4")], "label": True},
            {"prompt": QUESTION, "completion": [said("5")], "label": False},
        ],
        {"duplicate": 1, "zero_advantage": 1},
    )


def test_tool_calls_are_part_of_a_completion():
    """Calls of tools stand in the assistant's message, whose content is None where it says nothing beside them."""
    batch = batch_of([answer("", 1.0, tool_calls=[SEARCH]), answer("I'll look", 0.0, tool_calls=[SEARCH])])
    assert preference_rows(batch, form="trl").rows == [
        {
            "prompt": QUESTION,
            "chosen": [said(None, tool_calls=[SEARCH])],
            "rejected": [said("I'll look", tool_calls=[SEARCH])],
        }
    ]


@pytest.mark.parametrize("rows_of", KINDS)
def test_what_no_row_can_be_made_of_is_counted(rows_of):
    """A call without its prompt, one that gave nothing and one whose worth is no number are in no row."""
    batch = batch_of(
        [answer("4", 1.0, messages=()), answer("", 1.0), answer("5", math.nan), answer("6", 1.0, math.inf)]
    )
    assert rows_of(batch) == Rows([], {"empty_completion": 1, "no_prompt": 1, "not_a_number": 2})


@pytest.mark.parametrize("value", ["\ud800", {1, 2}, math.nan, object()])
def test_a_message_that_is_no_json_is_refused(value):
    """What no file of rows can hold is refused, and says why."""
    batch = batch_of([answer("4", 1.0, messages=[{"role": "user", "content": value}])])
    with pytest.raises(InvalidInput, match=r"a row cannot be written as JSON \(.+\); record messages of plain values"):
        supervised_rows(batch)


def test_a_way_that_is_not_there_is_refused():
    """A misspelt word names those that there are."""
    with pytest.raises(InvalidInput, match='select is "best", "above" or "weighted", not \'all\''):
        supervised_rows(batch_of(), select="all")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match='form is "openai" or "trl", not \'dpo\''):
        preference_rows(batch_of(), form="dpo")  # type: ignore[arg-type]


@given(batches())
def test_every_member_is_in_a_row_or_counted(batch):
    """Of any batch, members in rows and members skipped are all members, and no row stands twice."""
    for rows_of, members_a_row in zip(KINDS, (1, 1, 1, 2, 2, 1), strict=True):
        rows = rows_of(batch)
        assert len(rows) * members_a_row + sum(rows.skipped.values()) == batch.n_members
        lines = rows.jsonl().split("\n")[:-1]
        assert [json.loads(line) for line in lines] == rows.rows
        assert len(set(lines)) == len(lines)


@given(batches())
def test_no_pair_prefers_what_was_worth_less(batch):
    """Each pair is of one prompt, and in some group the mean reward of the better is above the other's."""
    for row in preference_rows(batch, form="trl").rows:
        prompt, chosen, rejected = (json.dumps(row[name], sort_keys=True) for name in ("prompt", "chosen", "rejected"))

        def mean(members, completion, prompt=prompt):
            rewards = [
                member.reward
                for member in members
                if json.dumps([*member.messages], sort_keys=True) == prompt
                and (member.text or None) == json.loads(completion)[0]["content"]
                and ("tool_calls" in json.loads(completion)[0]) == bool(member.tool_calls)
            ]
            return math.fsum(rewards) / len(rewards) if rewards else math.nan

        assert any(mean(group.members, chosen) > mean(group.members, rejected) for group in batch)
