"""Whose reward a call earns: its rollout's, its module's, or what a function says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from grouping_tables import Rows, reasons, rewards_by_group

from tracetune.errors import InvalidReward
from tracetune.types import Call, Grouping, Rollout


def two() -> Rows:
    """Rollouts a and b with rewards 0 and 1: one `plan` and two `act` calls each."""
    rows = Rows()
    for place, rollout in enumerate("ab"):
        rows.rollout(rollout, float(place), {"plan": [f"{rollout}p"], "act": [f"{rollout}1", f"{rollout}2"]})
    return rows


def test_uniform_gives_every_call_its_rollouts_reward():
    """Scores of modules and calls change nothing."""
    rows = two().score(9.0, rollout_id="a", module="act").score(8.0, rollout_id="a", call_id="ap")
    assert rewards_by_group(rows.batch(Grouping())) == {
        ("act", 0): [0.0, 1.0], ("act", 1): [0.0, 1.0], ("plan", 0): [0.0, 1.0],
    }  # fmt: skip


def test_module_credit_takes_the_latest_score_of_a_call_or_of_its_module():
    """A call's own score comes first, then its module's, then its rollout's reward."""
    rows = two().score(0.1, rollout_id="a", module="act").score(0.2, rollout_id="a", module="act")
    rows.score(0.9, rollout_id="a", call_id="a2").score(0.7, rollout_id="a", module="act", name="style")
    assert rewards_by_group(rows.batch(Grouping(credit="module"))) == {
        ("act", 0): [0.2, 1.0], ("act", 1): [0.9, 1.0], ("plan", 0): [0.0, 1.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weight", "act", "plan"), [(0.25, 0.75, 0.75), ({"act": 0.25}, 0.75, 1.0), ({}, 1.0, 1.0), (0, 1.0, 1.0)]
)
def test_module_scores_are_mixed_by_weight(weight, act, plan):
    """A call earns weight * own + (1 - weight) * reward; a mapping leaves modules it does not name with the reward."""
    rows = two().score(0.0, rollout_id="b", module="act").score(0.0, rollout_id="b", module="plan")
    assert rewards_by_group(rows.batch(Grouping(credit="module", module_weight=weight, drop_constant=False))) == {
        ("act", 0): [0.0, act], ("act", 1): [0.0, act], ("plan", 0): [0.0, plan],
    }  # fmt: skip


def test_a_modules_own_score_is_enough_where_the_rollout_has_none():
    """With weight 1 the rollout's reward has no share, so it need not be there."""
    rows = two().score(0.5, rollout_id="b", module="act")
    rows.rollouts[1]["reward"] = None
    batch = rows.batch(Grouping(credit="module", drop_constant=False))
    assert rewards_by_group(batch) == {("act", 0): [0.0, 0.5], ("act", 1): [0.0, 0.5], ("plan", 0): [0.0]}
    assert (reasons(batch), reasons(batch, "rollout")) == ({"bp": "unscored"}, {})


def test_failed_rollouts_earn_what_failures_earn_under_any_credit():
    """Module scores and credit functions do not change what a failed rollout earns, and are not asked."""
    rows = two().score(0.5, rollout_id="b", module="act")
    rows.rollouts[1]["status"] = "format_error"
    asked = []

    def credit(rollout: Rollout, call: Call) -> float:
        asked.append(call.call_id)
        return 3.0

    assert rewards_by_group(rows.batch(Grouping(credit="module")))["act", 0] == [0.0, -1.0]
    assert rewards_by_group(rows.batch(Grouping(credit=credit)))["act", 0] == [3.0, -1.0]
    assert sorted(asked) == ["a1", "a2", "ap"]


def test_a_credit_function_sees_the_whole_rollout_once_for_each_call():
    """It is given the rollout with all its calls, and the call; what it gives is what the call earns."""
    rows = two().change("b2", late=True).change("a1", messages='[{"role": "user", "content": "hi"}]')
    rows.rollouts[0]["output"] = '{"title": "x"}'
    seen = {}

    def credit(rollout: Rollout, call: Call) -> float:
        assert call in rollout.calls
        seen[call.call_id] = (rollout.id, rollout.reward, rollout.output, [made.call_id for made in rollout.calls])
        return rollout.reward + call.invocation + len(call.messages[0]["content"])

    batch = rows.batch(Grouping(credit=credit, drop_constant=False))
    assert seen == {
        **dict.fromkeys(("a1", "a2", "ap"), ("a", 0.0, {"title": "x"}, ["ap", "a1", "a2"])),
        **dict.fromkeys(("b1", "bp"), ("b", 1.0, None, ["bp", "b1", "b2"])),
    }
    assert rewards_by_group(batch) == {("act", 0): [2.0, 3.0], ("act", 1): [3.0], ("plan", 0): [2.0, 3.0]}


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1.0", object(), 10**400])
def test_a_credit_that_is_not_a_finite_number_is_refused(value):
    """The message names the call, its module and its rollout."""
    with pytest.raises(InvalidReward, match=r"for call ap \(module 'plan', rollout a\); it must give a finite number"):
        two().batch(Grouping(credit=lambda rollout, call: value))


@pytest.mark.parametrize("value", [True, 1, np.float32(1.0)])
def test_any_kind_of_number_is_a_credit(value):
    """Whole numbers, booleans and numpy's scalars are."""
    batch = two().batch(Grouping(credit=lambda rollout, call: value, drop_constant=False))
    assert rewards_by_group(batch)["act", 0] == [1.0, 1.0]


def test_an_error_of_a_credit_function_reaches_the_caller_as_it_was_raised():
    """It is the user's own code that failed."""
    with pytest.raises(ZeroDivisionError):
        two().batch(Grouping(credit=lambda rollout, call: 1 / 0))
