"""The alignment over a real store: rollouts in by its door, groups out of it."""

from __future__ import annotations

import pytest
from grouping_tables import calls_by_group, reasons, rewards_by_group

import tracetune as tt
from tracetune.errors import QueryError


@pytest.fixture
def store(tmp_path):
    """A store with the reference rollouts: reward is the number of `act` calls, one `plan` each."""
    store = tt.Store(tmp_path / "traces.duckdb")

    def call(module: str, text: str) -> dict:
        return {
            "module": module, "messages": [{"role": "user", "content": module}], "completion": text,
            "finish_reason": "stop", "sampling": {"temperature": 1.0}, "prompt_token_ids": [1, 2],
            "completion_token_ids": [3], "completion_logprobs": [-0.5], "policy_version": "try-1@0",
        }  # fmt: skip

    store.add_rollouts(
        {
            "id": rollout, "run": "try-1", "split": "train", "step": 1, "example_id": "q1", "index": index,
            "reward": float(n),
            "calls": [call("plan", f"p{rollout}")] + [call("act", f"{rollout}{i}") for i in range(n)],
        }
        for index, (rollout, n) in enumerate({"a": 2, "b": 3, "c": 1}.items())
    )  # fmt: skip
    return store


def texts(batch) -> dict:
    """The members' texts in their order, by module and invocation."""
    return {
        (group.key["module"], group.key["invocation"]): [member.text for member in group.members] for group in batch
    }


def test_a_stores_rollouts_are_aligned(store):
    """The reference vectors hold for rollouts that went through spool and ingest."""
    assert rewards_by_group(store.groups(tt.Grouping()))["plan", 0] == [2.0, 3.0, 1.0]
    assert texts(store.groups(tt.Grouping(ragged="fill", fill="last"))) == {
        ("act", 0): ["a0", "b0", "c0"],
        ("act", 1): ["a1", "b1", "c0"],
        ("act", 2): ["a1", "b2", "c0"],
        ("plan", 0): ["pa", "pb", "pc"],
    }


def test_a_stores_members_are_exact(store):
    """Tokens, log-probabilities, sampling and policy version come back with each member."""
    member = store.groups(tt.Grouping(), where="module = 'act'").groups[0].members[0]
    assert (member.prompt_ids, member.completion_ids, member.logprobs) == ([1, 2], [3], [-0.5])
    assert (member.text, member.finish_reason, member.policy_version) == ("a0", "stop", "try-1@0")
    assert list(member.messages) == [{"role": "user", "content": "act"}]
    assert (member.sampling.temperature, member.on_policy, member.is_exact) == (1.0, True, True)


def test_a_stores_views_are_its_groups(store):
    """The public views say what `Grouping(drop_constant=False)` gives, also after a late score."""
    store.reward("c", 5.0)
    batch = store.groups(tt.Grouping(drop_constant=False))
    rows = store.sql("SELECT group_id, slot, call_id, advantage FROM group_members ORDER BY group_id, slot").rows()
    assert [tuple(row.values()) for row in rows] == [
        (group.id, slot, member.call_id, member.advantage)
        for group in batch
        for slot, member in enumerate(group.members)
    ]
    sizes = store.sql("SELECT module, invocation, size, n_rollouts FROM groups ORDER BY ALL").rows()
    assert [tuple(row.values()) for row in sizes] == [
        ("act", 0, 3, 3),
        ("act", 1, 2, 2),
        ("act", 2, 1, 1),
        ("plan", 0, 3, 3),
    ]


def test_scores_of_calls_and_modules_are_credits(store):
    """A score given to one call, and one given to a module, are what those calls earn under "module"."""
    first = calls_by_group(store.groups(tt.Grouping()))["act", 0][0]
    store.reward(None, 9.0, call_id=first)
    store.rewards([{"rollout_id": "b", "module": "act", "value": 7.0}])
    found = rewards_by_group(store.groups(tt.Grouping(credit="module", drop_constant=False)))
    assert (found["act", 0], found["act", 1]) == ([9.0, 7.0, 1.0], [2.0, 7.0])
    assert rewards_by_group(store.groups(tt.Grouping()))["act", 0] == [2.0, 3.0, 1.0]


def test_a_credit_function_reads_a_stores_rollouts(store):
    """Rollout and call come with outputs, rewards and texts."""
    batch = store.groups(tt.Grouping(credit=lambda rollout, call: rollout.reward * 10 + len(rollout.calls)))
    assert rewards_by_group(batch)["plan", 0] == [23.0, 34.0, 12.0]


def test_failures_and_unscored_rollouts_of_a_store(store):
    """A failed rollout earns what failures earn; an unscored or interrupted one is left out and reported."""
    call = {"module": "plan", "completion": "?"}
    scope = {"run": "try-1", "split": "train", "step": 1, "example_id": "q1", "calls": [call]}
    store.add_rollouts(
        [
            {"id": "d", "index": 3, "status": "format_error", **scope},
            {"id": "e", "index": 4, **scope},
            {"id": "f", "index": 5, "status": "interrupted", **scope},
        ]
    )
    batch = store.groups(tt.Grouping(), where="module = 'plan'")
    assert rewards_by_group(batch) == {("plan", 0): [2.0, 3.0, 1.0, -1.0]}
    assert reasons(batch, "rollout") == {"e": "unscored", "f": "interrupted"}
    assert sorted(reasons(batch).values()) == ["interrupted", "unscored"]


def test_a_bad_condition_is_refused_by_a_store(store):
    """With DuckDB's reason."""
    with pytest.raises(QueryError, match='Referenced column "modul" not found'):
        store.groups(where="modul = 'act'")
