"""What a group's rewards become: the four estimators, groups without spread, and groups of one."""

from __future__ import annotations

import numpy as np
import pytest
from grouping_tables import Rows, calls_by_group, reasons

from tracetune.types import Grouping

REWARDS = [0.0, 1.0, 0.5, 0.25, 1.0]


def group_of(rewards: list[float], example: str = "q1", rows: Rows | None = None) -> Rows:
    """One `act` call of one example for each reward."""
    rows = rows or Rows()
    for place, reward in enumerate(rewards):
        rows.rollout(f"{example}-{place}", reward, {"act": [f"{example}-c{place}"]}, example_id=example)
    return rows


def advantages(rows: Rows, grouping: Grouping) -> dict[str, list[float]]:
    """The members' advantages by example."""
    return {group.key["example_id"]: [member.advantage for member in group.members] for group in rows.batch(grouping)}


def test_grpo_divides_by_the_samples_standard_deviation():
    """(r - mean) / (std + eps), with ddof 1 and eps 1e-4."""
    rewards = np.array(REWARDS)
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    assert advantages(group_of(REWARDS), Grouping())["q1"] == pytest.approx(expected, abs=1e-12)


def test_centered_only_subtracts_the_mean():
    """Dr. GRPO: r - mean."""
    expected = np.array(REWARDS) - np.mean(REWARDS)
    assert advantages(group_of(REWARDS), Grouping(advantage="centered"))["q1"] == pytest.approx(expected, abs=1e-12)


def test_rloo_compares_with_the_mean_of_the_others():
    """Leave one out: each reward less the mean of the other rewards."""
    rewards = np.array(REWARDS)
    expected = [reward - np.delete(rewards, place).mean() for place, reward in enumerate(rewards)]
    assert advantages(group_of(REWARDS), Grouping(advantage="rloo"))["q1"] == pytest.approx(expected, abs=1e-12)


def test_batch_normalises_over_all_groups_that_are_kept():
    """One mean and one standard deviation for the batch; constant groups are gone before they are taken."""
    rows = group_of([0.0, 1.0], "q1")
    group_of([5.0, 3.0, 1.0], "q2", rows)
    group_of([9.0, 9.0], "q3", rows)
    kept = np.array([0.0, 1.0, 5.0, 3.0, 1.0])
    expected = (kept - kept.mean()) / (kept.std(ddof=1) + 1e-4)
    found = advantages(rows, Grouping(advantage="batch"))
    assert list(found) == ["q1", "q2"]
    assert found["q1"] + found["q2"] == pytest.approx(expected, abs=1e-12)


def test_batch_gives_groups_of_one_an_advantage():
    """Singletons are what the batch is for: they stay, and are not reported."""
    rows = group_of([0.0], "q1")
    group_of([1.0], "q2", rows)
    batch = rows.batch(Grouping(advantage="batch"))
    expected = 0.5 / (np.std([0.0, 1.0], ddof=1) + 1e-4)
    found = [member.advantage for group in batch for member in group.members]
    assert found == pytest.approx([-expected, expected], abs=1e-12)
    assert (list(batch.singletons), list(batch.left_out)) == ([], [])


def test_a_batch_without_spread_has_no_advantage():
    """Equal rewards all over the batch give 0, not a division by nothing."""
    rows = group_of([0.3], "q1")
    group_of([0.3], "q2", rows)
    assert advantages(rows, Grouping(advantage="batch")) == {"q1": [0.0], "q2": [0.0]}
    assert advantages(group_of([0.3]), Grouping(advantage="batch")) == {"q1": [0.0]}


def test_constant_groups_are_left_out_and_reported():
    """A group of equal rewards is left out with its calls; others stay."""
    rows = group_of([0.1] * 3, "q1")
    group_of([0.0, 1.0], "q2", rows)
    batch = rows.batch(Grouping())
    assert calls_by_group(batch) == {("act", 0): ["q2-c0", "q2-c1"]}
    assert reasons(batch, "group") == {"try-1/train/1/q1/act//0/0": "constant"}
    assert reasons(batch) == {f"q1-c{place}": "constant" for place in range(3)}


@pytest.mark.parametrize("estimator", ["grpo", "centered", "rloo"])
@pytest.mark.parametrize("rewards", [[0.1] * 7, [0.7]])
def test_groups_without_spread_have_advantage_exactly_0(estimator, rewards):
    """No rounding of a mean may look like a signal when such groups are kept for their KL term."""
    grouping = Grouping(advantage=estimator, drop_constant=False)
    assert advantages(group_of(rewards), grouping) == {"q1": [0.0] * len(rewards)}


def test_groups_of_one_are_reported_whether_kept_or_not():
    """A singleton's id is in `singletons`; it is in the groups only when constant groups are kept."""
    name = "try-1/train/1/q1/act//0/0"
    dropped, kept = (group_of([0.7]).batch(Grouping(drop_constant=drop)) for drop in (True, False))
    assert (len(dropped), list(dropped.singletons), reasons(dropped, "group")) == (0, [name], {name: "singleton"})
    assert (len(kept), list(kept.singletons), list(kept.left_out)) == (1, [name], [])


def test_eps_is_added_to_the_standard_deviation():
    """A larger eps shrinks the advantages."""
    assert advantages(group_of([0.0, 1.0]), Grouping(eps=1.0))["q1"] == pytest.approx(
        [-0.5 / (np.sqrt(0.5) + 1), 0.5 / (np.sqrt(0.5) + 1)]
    )
