"""Rows: whatever is shared, every member reads the log-probabilities it has alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import own_logprobs, tiny_model

from tracetune.trainers.local.forwards import forwards_of, read_tokens
from tracetune.trainers.local.members import TrainableMember
from tracetune.trainers.local.rows import Cost, cut_rows

ONE_TREE = Cost(token=1.0, pair=0.0)
PATHS_ONLY = Cost(token=1.0, pair=1e9)
MODELS = {
    "grouped-query": tiny_model(),
    "multi-head": tiny_model(num_key_value_heads=4),
    "multi-query": tiny_model(num_key_value_heads=1),
}

some_tokens = st.integers(2, 4)
some_members = st.lists(
    st.builds(
        TrainableMember,
        prompt_ids=st.lists(some_tokens, min_size=1, max_size=4).map(tuple),
        completion_ids=st.lists(some_tokens, min_size=1, max_size=5).map(tuple),
        logprobs=st.none(),
        temperature=st.sampled_from([0.5, 1.0]),
        advantage=st.floats(-2, 2),
        weight=st.just(1.0),
    ),
    min_size=1,
    max_size=8,
)


def member(prompt: tuple[int, ...], completion: tuple[int, ...]) -> TrainableMember:
    """A member with nothing but its tokens."""
    return TrainableMember(prompt, completion, None, 1.0, 0.0)


def readings(model, rows, budget):
    """(member, its log-probabilities) as the rows give them, in the order of their tokens."""
    found = []
    for forward in forwards_of(rows, budget, torch.device("cpu")):
        with torch.inference_mode():
            logprobs = read_tokens(model, forward).logprobs_T
        found += list(zip(forward.targets_T.tolist(), logprobs.tolist(), strict=True))
    return found


def test_a_prompt_and_common_beginnings_stand_once():
    """Four completions of one prompt, two of them equal and one going on from another, are one small tree."""
    prompt = (5, 6, 7)
    members = [member(prompt, completion) for completion in [(8, 9, 1), (8, 9, 1), (8, 10, 1), (8, 9, 11, 1)]]
    (row,) = cut_rows(members, cost=ONE_TREE, budget=100)
    assert row.token_ids.tolist() == [5, 6, 7, 8, 9, 11, 10]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 4]
    assert sorted((reading.member.completion_ids, reading.nodes.tolist()) for reading in row.readings) == [
        ((8, 9, 1), [2, 3, 4]),
        ((8, 9, 1), [2, 3, 4]),
        ((8, 9, 11, 1), [2, 3, 4, 5]),
        ((8, 10, 1), [2, 3, 6]),
    ]
    assert row.subtree_ends(8).tolist() == [7, 7, 7, 7, 6, 6, 7, 8]


def test_a_completion_of_one_token_reads_the_prompt_alone():
    """An end token at once is predicted by the prompt's last token, and nothing is run for it."""
    (row,) = cut_rows([member((5, 6), (1,))], cost=ONE_TREE, budget=100)
    assert row.token_ids.tolist() == [5, 6]
    assert row.readings[0].nodes.tolist() == [1]


@given(members=some_members, budget=st.integers(1, 40), cost=st.sampled_from([ONE_TREE, PATHS_ONLY, Cost(10.0, 1.0)]))
def test_every_member_is_in_one_row_within_the_budget(members, budget, cost):
    """No member is lost or doubled, and only a member alone may exceed the budget."""
    rows = cut_rows(members, cost=cost, budget=budget)
    assert Counter(reading.member for row in rows for reading in row.readings) == Counter(members)
    assert all(len(row) <= budget or row.is_path for row in rows)


@given(members=some_members)
def test_free_attention_computes_every_prefix_once(members):
    """Where a mask costs nothing, there are as many nodes as different beginnings among all members."""
    read = [(one.prompt_ids + one.completion_ids)[:-1] for one in members]
    beginnings = {tokens[:length] for tokens in read for length in range(1, len(tokens) + 1)}
    assert sum(map(len, cut_rows(members, cost=ONE_TREE, budget=1000))) == len(beginnings)


@given(members=some_members)
def test_dear_attention_makes_paths(members):
    """Where a mask costs more than anything, nothing branches; without sharing each member has its own row."""
    assert all(row.is_path for row in cut_rows(members, cost=PATHS_ONLY, budget=1000))
    assert len(cut_rows(members, cost=ONE_TREE, budget=1000, share=False)) == len(members)


@settings(max_examples=40)
@given(members=some_members, name=st.sampled_from(sorted(MODELS)), budget=st.integers(5, 60))
def test_log_probabilities_are_those_of_the_member_alone(members, name, budget):
    """Trees, paths, budgets and temperatures change no log-probability beyond rounding."""
    model = MODELS[name]
    alone = sorted(
        pair
        for one in members
        for pair in zip(
            one.completion_ids, own_logprobs(model, one.prompt_ids, one.completion_ids, one.temperature), strict=True
        )
    )
    for cost in (ONE_TREE, PATHS_ONLY, Cost(10.0, 1.0)):
        found = sorted(readings(model, cut_rows(members, cost=cost, budget=budget), budget))
        assert [token for token, _ in found] == [token for token, _ in alone]
        # The relative part is for log-probabilities of some tens, where rounding alone is 1e-6 of them.
        assert [value for _, value in found] == pytest.approx([value for _, value in alone], rel=2e-6, abs=1e-5)


def test_logits_at_prompt_tokens_are_never_asked_for():
    """Only nodes that predict a completion token have logits: one a prompt, and those inside completions."""
    members = [member((5, 6, 7), (8, 1)), member((5, 6, 7), (9, 1))]
    (forward,) = forwards_of(cut_rows(members, cost=ONE_TREE, budget=100), 100, torch.device("cpu"))
    assert forward.input_ids_BN.tolist() == [[5, 6, 7, 8, 9]]
    assert forward.predicting_BN.tolist() == [[False, False, True, True, True]]


def test_forwards_keep_to_the_budget_with_their_padding():
    """Rows of many lengths are put together so that rows times the longest stay within the budget."""
    members = [member((token,) * length, (1,)) for token, length in enumerate((3, 9, 4, 12, 5, 30), start=5)]
    forwards = forwards_of(cut_rows(members, cost=PATHS_ONLY, budget=24), 24, torch.device("cpu"))
    assert sorted(tuple(forward.input_ids_BN.shape) for forward in forwards) == [(1, 30), (2, 12), (3, 5)]
