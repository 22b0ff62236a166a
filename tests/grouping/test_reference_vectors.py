"""The reference behaviour of alignment and selection, vector by vector."""

from __future__ import annotations

import pytest
from grouping_tables import Rows, calls_by_group, reasons, rewards_by_group

from tracetune.types import Grouping


def ragged() -> Rows:
    """Reward is the number of `act` calls: act = [a1, a2], [b1, b2, b3], [c1], and one `plan` each."""
    return (
        Rows()
        .rollout("a", 2.0, {"plan": ["pa"], "act": ["a1", "a2"]})
        .rollout("b", 3.0, {"plan": ["pb"], "act": ["b1", "b2", "b3"]})
        .rollout("c", 1.0, {"plan": ["pc"], "act": ["c1"]})
    )


def test_plan_group_has_the_rewards_of_its_rollouts():
    """The plan group's rewards are (2, 3, 1)."""
    assert rewards_by_group(ragged().batch(Grouping()))["plan", 0] == [2.0, 3.0, 1.0]


def test_truncate_keeps_the_first_act_of_each_rollout():
    """Truncation gives (a1, b1, c1) and reports the calls and groups beyond."""
    batch = ragged().batch(Grouping(ragged="truncate"))
    assert calls_by_group(batch) == {("act", 0): ["a1", "b1", "c1"], ("plan", 0): ["pa", "pb", "pc"]}
    assert reasons(batch) == {"a2": "ragged", "b2": "ragged", "b3": "ragged"}
    assert reasons(batch, "group") == {"try-1/train/1/q1/act//1/0": "ragged", "try-1/train/1/q1/act//2/0": "ragged"}


def test_fill_last_repeats_each_rollouts_last_act():
    """Filling with the last call gives (a1, b1, c1), (a2, b2, c1), (a2, b3, c1)."""
    batch = ragged().batch(Grouping(ragged="fill", fill="last"))
    assert calls_by_group(batch) == {
        ("act", 0): ["a1", "b1", "c1"],
        ("act", 1): ["a2", "b2", "c1"],
        ("act", 2): ["a2", "b3", "c1"],
        ("plan", 0): ["pa", "pb", "pc"],
    }
    assert list(batch.left_out) == []


def test_strict_leaves_out_a_module_that_one_rollout_never_called():
    """With act = [], [b1, b2], [c1] there are no act groups, and the plan rewards are (0, 2, 1)."""
    rows = (
        Rows()
        .rollout("a", 0.0, {"plan": ["pa"]})
        .rollout("b", 2.0, {"plan": ["pb"], "act": ["b1", "b2"]})
        .rollout("c", 1.0, {"plan": ["pc"], "act": ["c1"]})
    )
    batch = rows.batch(Grouping(missing="strict"))
    assert rewards_by_group(batch) == {("plan", 0): [0.0, 2.0, 1.0]}
    assert reasons(batch) == {"b1": "missing", "b2": "missing", "c1": "missing"}
    assert reasons(batch, "group") == {"try-1/train/1/q1/act//0/0": "missing", "try-1/train/1/q1/act//1/0": "missing"}


def answers(rewards: list[float]) -> Rows:
    """One `answer` call for each reward: call c0, c1 and so on."""
    rows = Rows()
    for index, reward in enumerate(rewards):
        rows.rollout(f"r{index:02}", reward, {"answer": [f"c{index}"]})
    return rows


@pytest.mark.parametrize(
    ("rewards", "size", "selected", "positions"),
    [
        ([0.0, 1.0, 0.5, 0.25], 2, [1.0, 0.0], [1, 0]),
        ([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], 4, [1.0, 1.0, 0.0, 0.0], [1, 4, 0, 5]),
        ([i / 10 for i in range(12)], 5, [1.1, 0.8, 0.5, 0.3, 0.0], [11, 8, 5, 3, 0]),
    ],
)
def test_diverse_selection_spreads_over_the_rewards(rewards, size, selected, positions):
    """The rewards picked, and the places of their calls, are those of the reference; the rest is reported."""
    batch = answers(rewards).batch(Grouping(size=size))
    assert rewards_by_group(batch) == {("answer", 0): selected}
    assert calls_by_group(batch) == {("answer", 0): [f"c{place}" for place in positions]}
    assert reasons(batch) == {f"c{place}": "not_selected" for place in range(len(rewards)) if place not in positions}
