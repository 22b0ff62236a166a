"""Whole rollouts as members: mmGRPO's Eq. 9."""

from __future__ import annotations

import numpy as np
import pytest
from grouping_tables import Rows, reasons

from tracetune.types import Grouping

TRAJECTORY = Grouping(unit="trajectory")


def three() -> Rows:
    """Rollouts with rewards 2, 3 and 1, and three, four and two calls."""
    return (
        Rows()
        .rollout("a", 2.0, {"plan": ["pa"], "act": ["a1", "a2"]})
        .rollout("b", 3.0, {"plan": ["pb"], "act": ["b1", "b2", "b3"]})
        .rollout("c", 1.0, {"plan": ["pc"], "act": ["c1"]})
    )


def members(rows: Rows, grouping: Grouping) -> list[tuple[str, int, float]]:
    """Call, trajectory and advantage of the members of the only group."""
    (group,) = rows.batch(grouping)
    return [(member.call_id, member.trajectory, member.advantage) for member in group.members]


def test_a_rollouts_calls_share_its_place_and_its_advantage():
    """The group is the example's; its members are the calls of all rollouts, rollout by rollout."""
    batch = three().batch(TRAJECTORY)
    (group,) = batch
    rewards = np.array([2.0, 3.0, 1.0])
    expected = (rewards - 2.0) / (1.0 + 1e-4)
    assert (batch.unit, group.id) == ("trajectory", "try-1/train/1/q1")
    calls = {"a": ["pa", "a1", "a2"], "b": ["pb", "b1", "b2", "b3"], "c": ["pc", "c1"]}
    assert [(member.call_id, member.rollout_id, member.trajectory, member.reward) for member in group.members] == [
        (call, rollout, place, rewards[place]) for place, (rollout, made) in enumerate(calls.items()) for call in made
    ]
    assert [member.advantage for member in group.members] == pytest.approx(
        [expected[place] for place, made in enumerate(calls.values()) for _ in made]
    )


def test_a_trajectory_earns_the_mean_of_its_calls_credits():
    """Credits of calls are averaged over the rollout."""
    found = members(three(), Grouping(unit="trajectory", advantage="centered", credit=lambda r, c: c.invocation))
    means = [1 / 3, 3 / 4, 0.0]
    centre = np.mean(means)
    assert {place: advantage for _, place, advantage in found} == pytest.approx(
        {place: mean - centre for place, mean in enumerate(means)}
    )


def test_equal_rewards_of_unequal_rollouts_have_no_spread():
    """Averaging the same number over three calls and over two must not differ in the last bit."""
    rows = Rows().rollout("a", 0.1, {"act": ["a1", "a2", "a3"]}).rollout("b", 0.1, {"act": ["b1", "b2"]})
    batch = rows.batch(TRAJECTORY)
    assert (len(batch), reasons(batch, "group")) == (0, {"try-1/train/1/q1": "constant"})
    assert reasons(batch) == dict.fromkeys(("a1", "a2", "a3", "b1", "b2"), "constant")


def test_whole_rollouts_are_selected():
    """A rollout that is not selected is left out with all its calls."""
    batch = three().batch(Grouping(unit="trajectory", size=2))
    assert [(m.call_id, m.trajectory) for m in batch.groups[0].members] == [
        ("pb", 0), ("b1", 0), ("b2", 0), ("b3", 0), ("pc", 1), ("c1", 1),
    ]  # fmt: skip
    assert reasons(batch) == {"pa": "not_selected", "a1": "not_selected", "a2": "not_selected"}


def test_calls_that_cannot_be_learned_from_leave_their_trajectory():
    """The rest of the rollout stays; each is reported with its own reason."""
    rows = three().change("b2", late=True).change("pa", kind="score")
    rows.rollouts[2]["reward"] = None
    batch = rows.batch(TRAJECTORY)
    assert [m.call_id for m in batch.groups[0].members] == ["a1", "a2", "pb", "b1", "b3"]
    assert reasons(batch) == {"b2": "late", "pa": "score_call", "c1": "unscored", "pc": "unscored"}


def test_alignment_within_rollouts_does_not_touch_trajectories():
    """`missing` and `ragged` align calls; with whole rollouts there is nothing to align."""
    assert members(three(), Grouping(unit="trajectory", missing="strict", ragged="fill")) == members(
        three(), TRAJECTORY
    )


def test_one_rollout_is_a_singleton():
    """One unit, however many calls it made."""
    batch = Rows().rollout("a", 1.0, {"act": ["a1", "a2"]}).batch(Grouping(unit="trajectory", drop_constant=False))
    assert list(batch.singletons) == ["try-1/train/1/q1"]
    assert [m.advantage for m in batch.groups[0].members] == [0.0, 0.0]


def test_repeated_rollouts_are_units_of_their_own():
    """A repeated rollout has as many places as it has repetitions."""
    rows = Rows().rollout("a", 0.0, {"act": ["a1", "a2"]}).rollout("b", 1.0, {"act": ["b1"]})
    found = members(rows, Grouping(unit="trajectory", size=3, repeat=True))
    assert [(call, place) for call, place, _ in found] == [("a1", 0), ("a2", 0), ("b1", 1), ("a1", 2), ("a2", 2)]
