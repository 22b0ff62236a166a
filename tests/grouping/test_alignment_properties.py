"""What holds of any rollouts under any grouping."""

from __future__ import annotations

from collections import Counter
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import numpy as np
import pytest
from grouping_strategies import groupings, rows, some
from grouping_tables import Rows
from hypothesis import given
from hypothesis import strategies as st

from tracetune.types import GroupBatch, Grouping


@some
@given(rows(), groupings, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(made: Rows, grouping: Grouping, random):
    """Ids, slots, advantages to the last bit, and what was left out are the same for any order of rows."""
    before = made.batch(grouping)
    random.shuffle(made.rollouts)
    random.shuffle(made.calls)
    assert made.batch(grouping) == before


@some
@given(rows(), groupings)
def test_no_call_is_lost(made: Rows, grouping: Grouping):
    """Every call is in a group or left out with a reason, once and not both."""
    batch = made.batch(grouping)
    grouped = {member.call_id for group in batch for member in group.members}
    left_out = Counter(entry.id for entry in batch.left_out if entry.kind == "call")
    assert grouped | set(left_out) == {call["call_id"] for call in made.calls}
    assert not grouped & set(left_out)
    assert set(left_out.values()) <= {1}


@some
@given(rows(), groupings)
def test_advantages_are_those_of_plain_arithmetic(made: Rows, grouping: Grouping):
    """Each estimator computed again from the members' rewards; exactly 0 where nothing varies."""
    batch = made.batch(grouping)
    units = [{member.trajectory: member for member in group.members}.values() for group in batch]
    kept = np.array([unit.reward for group in units for unit in group])
    for group in units:
        rewards = np.array([unit.reward for unit in group])
        found = [unit.advantage for unit in group]
        measured = kept if grouping.advantage == "batch" else rewards
        if np.ptp(measured) == 0:
            assert found == [0.0] * len(found)
            continue
        spread = measured.std(ddof=1) + grouping.eps
        expected = {
            "grpo": lambda rewards=rewards, spread=spread: (rewards - rewards.mean()) / spread,
            "centered": lambda rewards=rewards: rewards - rewards.mean(),
            "rloo": lambda rewards=rewards: [
                reward - np.delete(rewards, place).mean() for place, reward in enumerate(rewards)
            ],
            "batch": lambda rewards=rewards, spread=spread: (rewards - kept.mean()) / spread,
        }[grouping.advantage]()
        assert found == pytest.approx(expected, rel=1e-7, abs=1e-7)
        if grouping.advantage in ("grpo", "centered"):
            assert sum(found) == pytest.approx(0.0, abs=1e-7)


@some
@given(rows(), groupings)
def test_dropped_groups_are_exactly_those_without_spread(made: Rows, grouping: Grouping):
    """No group that is kept is constant when constant groups are dropped; singletons stay only for `batch`."""
    batch = made.batch(grouping.model_copy(update={"drop_constant": True}))
    for group in batch:
        units = {member.trajectory: member.reward for member in group.members}
        assert len(set(units.values())) > 1 or (grouping.advantage == "batch" and len(units) == 1)


@some
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.integers(1, 20))
def test_diverse_positions_are_rounded_half_to_even(rewards: list[float], size: int):
    """Member i of G stands at round_half_even(i (n - 1) / (G - 1)) of the ranking, whatever the rewards."""
    made = Rows()
    for place, reward in enumerate(rewards):
        made.rollout(f"r{place:02}", reward, {"act": [f"c{place}"]})
    ranking = sorted(range(len(rewards)), key=lambda place: (-rewards[place], place))
    if size < len(rewards):
        steps = [Fraction(i * (len(rewards) - 1), max(size - 1, 1)) for i in range(size)]
        # As DuckDB has it: i times the quotient in double precision.
        doubles = [i * ((len(rewards) - 1) / max(size - 1, 1)) for i in range(size)]
        places = [int(Decimal(double).quantize(Decimal(1), ROUND_HALF_EVEN)) for double in doubles]
        assert all(
            abs(place - step) <= Fraction(1, 2) + Fraction(1, 10**9) for place, step in zip(places, steps, strict=True)
        )
        ranking = [ranking[place] for place in places]
    else:
        ranking = list(range(len(rewards)))
    (group,) = made.batch(Grouping(size=size, drop_constant=False))
    assert [member.call_id for member in group.members] == [f"c{place}" for place in ranking]


@some
@given(rows(), st.integers(0, 5))
def test_filled_calls_are_the_rollouts_own(made: Rows, seed: int):
    """Filling takes no member away, and adds only calls of the rollout that lacked an invocation."""

    def places(batch: GroupBatch) -> set[tuple[str, str, int]]:
        return {(m.call_id, m.rollout_id, group.key["invocation"]) for group in batch for m in group.members}

    plain = places(made.batch(Grouping(drop_constant=False)))
    filled = places(made.batch(Grouping(drop_constant=False, ragged="fill", seed=seed)))
    own = {call_id: rollout_id for call_id, rollout_id, _ in plain}
    assert plain <= filled
    assert all(own[call_id] == rollout_id for call_id, rollout_id, _ in filled)
