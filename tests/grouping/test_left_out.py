"""What never stands in a group, and the reason given for each."""

from __future__ import annotations

import pytest
from grouping_tables import Rows, calls_by_group, reasons, rewards_by_group

from tracetune.types import Grouping, LeftOut


def three() -> Rows:
    """Three rollouts of one `act` and one `plan` call, with rewards 0, 1 and 2."""
    rows = Rows()
    for place, rollout in enumerate("abc"):
        rows.rollout(rollout, float(place), {"act": [f"{rollout}1"], "plan": [f"{rollout}2"]})
    return rows


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"kind": "score"}, "score_call"),
        ({"late": True}, "late"),
        ({"cached": True}, "cached"),
        ({"status": "error", "completion": None}, "no_completion"),
        ({"status": "error", "completion": ""}, "no_completion"),
        ({"completion": None}, "no_completion"),
        ({"truncated": True}, "truncated"),
        ({"redacted": True}, "redacted"),
    ],
)
def test_a_call_that_cannot_be_learned_from_is_left_out(columns, reason):
    """The call is reported with its reason; its rollout's other calls stay."""
    batch = three().change("b1", **columns).batch(Grouping())
    assert calls_by_group(batch) == {("act", 0): ["a1", "c1"], ("plan", 0): ["a2", "b2", "c2"]}
    assert list(batch.left_out) == [LeftOut("call", "b1", reason)]


@pytest.mark.parametrize(
    "columns",
    [
        {"truncated": True, "exact": True},
        {"redacted": True, "exact": True},
        {"completion": None, "exact": True},
        {"status": "error", "completion": "not JSON"},
        {"unordered": True},
        {"completion": ""},
    ],
)
def test_a_call_that_can_be_learned_from_stays(columns):
    """Exact tokens make up for shortened or missing text, a failed call keeps what it received."""
    batch = three().change("b1", **columns).batch(Grouping())
    assert (calls_by_group(batch)["act", 0], list(batch.left_out)) == (["a1", "b1", "c1"], [])


def test_a_call_without_a_rollout_is_reported():
    """A call whose rollout was never recorded is in no group, and not lost."""
    batch = three().change("b1", rollout_id="nowhere").batch(Grouping())
    assert list(batch.left_out) == [LeftOut("call", "b1", "no_rollout")]


def test_modules_that_are_not_trained_are_left_out():
    """Only the named modules are grouped."""
    batch = three().batch(Grouping(modules=("plan", "it's")))
    assert calls_by_group(batch) == {("plan", 0): ["a2", "b2", "c2"]}
    assert reasons(batch) == {"a1": "other_module", "b1": "other_module", "c1": "other_module"}


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"reward": None}, "unscored"),
        ({"superseded": True}, "superseded"),
        ({"status": None}, "running"),
        ({"status": "interrupted"}, "interrupted"),
        ({"status": "interrupted", "reward": None}, "interrupted"),
    ],
)
def test_a_rollout_that_earned_nothing_is_left_out_with_its_calls(columns, reason):
    """The rollout and each of its calls are reported."""
    rows = three()
    rows.rollouts[1].update(columns)
    batch = rows.batch(Grouping())
    assert calls_by_group(batch) == {("act", 0): ["a1", "c1"], ("plan", 0): ["a2", "c2"]}
    assert list(batch.left_out) == [
        LeftOut("rollout", "b", reason), LeftOut("call", "b1", reason), LeftOut("call", "b2", reason),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "grouping", "reward"),
    [
        ({"status": "error", "error_type": "builtins.KeyError"}, Grouping(), 0.0),
        ({"status": "timeout"}, Grouping(failure_reward=-2.0), -2.0),
        ({"status": "format_error"}, Grouping(failure_reward=-2.0), -1.0),
        ({"status": "format_error"}, Grouping(format_reward=-3.0), -3.0),
        ({"status": "error", "error_type": "json.JSONDecodeError"}, Grouping(format_errors=("JSONDecodeError",)), -1.0),
        ({"status": "error", "error_type": "JSONDecodeError"}, Grouping(format_errors=("JSONDecodeError",)), -1.0),
        ({"status": "error", "error_type": "a.ParseError"}, Grouping(format_errors=("x", "a.ParseError")), -1.0),
        ({"status": "error", "error_type": "b.ParseError"}, Grouping(format_errors=("a.ParseError",)), 0.0),
    ],
)
@pytest.mark.parametrize("recorded", [None, 5.0])
def test_every_call_of_a_failed_rollout_earns_what_failures_earn(columns, grouping, reward, recorded):
    """In place of the reward, scored or not, for the calls before the failure as for the failing one."""
    rows = three()
    rows.rollouts[1].update(columns, reward=recorded)
    assert rewards_by_group(rows.batch(grouping)) == {("act", 0): [0.0, reward, 2.0], ("plan", 0): [0.0, reward, 2.0]}


def test_the_call_that_could_not_be_parsed_keeps_its_raw_text():
    """Its member carries the text that the program refused."""
    rows = three().change("b1", completion="no answer line")
    rows.rollouts[1].update(status="format_error", reward=None)
    (act,) = [group for group in rows.batch(Grouping()) if group.key["module"] == "act"]
    assert [(member.text, member.reward) for member in act.members] == [
        ("done", 0.0), ("no answer line", -1.0), ("done", 2.0),
    ]  # fmt: skip


def test_rollouts_without_calls_are_reported_where_the_condition_may_mean_them():
    """A condition over run and step speaks of them; one over modules or another run does not."""
    rows = three().rollout("silent", 1.0, {})
    assert reasons(rows.batch(Grouping()), "rollout") == {"silent": "no_calls"}
    assert reasons(rows.batch(Grouping(), "run = 'try-1' AND step = 1"), "rollout") == {"silent": "no_calls"}
    assert reasons(rows.batch(Grouping(), "module = 'act'"), "rollout") == {}
    assert reasons(rows.batch(Grouping(), "run = 'try-2'"), "rollout") == {}


def test_a_call_that_fills_another_group_is_not_left_out():
    """A call is reported only when it stands in no group at all."""
    rows = Rows().rollout("a", 0.0, {"act": ["a1", "a2"]}).rollout("b", 1.0, {"act": ["b1"]})
    rows.rollout("c", 0.5, {"act": ["c1", "c2"]})
    batch = rows.batch(Grouping(ragged="fill", fill="last", size=2))
    assert calls_by_group(batch) == {("act", 0): ["b1", "a1"], ("act", 1): ["b1", "a2"]}
    assert reasons(batch) == {"c1": "not_selected", "c2": "not_selected"}
