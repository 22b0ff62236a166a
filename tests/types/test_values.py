"""The values that pass between the rooms refuse what makes no sense, in one sentence."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from pydantic import ValidationError

import tracetune as tt
from tracetune.errors import InvalidInput, InvalidReward


@pytest.mark.parametrize(
    ("value", "number"), [(1, 1.0), (True, 1.0), (0.25, 0.25), (Decimal("0.5"), 0.5), (tt.Score(2), 2.0)]
)
def test_a_reward_is_any_number(value: object, number: float):
    """Integers, booleans, decimals and scores all count as rewards."""
    assert tt.Score.of(value) == tt.Score(number)


@pytest.mark.parametrize("value", [None, "0.5", "high", [1], math.nan, math.inf, tt.Score(math.nan)])
def test_what_is_no_number_is_refused(value: object):
    """A reward that is not a finite number raises InvalidReward, saying what came instead."""
    with pytest.raises(InvalidReward, match="must be a"):
        tt.Score.of(value)


def test_a_module_score_is_checked_by_name():
    """A module's score that is not a number is refused with the module's name."""
    with pytest.raises(InvalidReward, match="the reward of module 'hop' must be a finite number, not nan"):
        tt.Score.of(tt.Score(1.0, by_module={"hop": math.nan}))


def test_a_plain_dictionary_is_an_example():
    """A mapping without `inputs` is taken as the inputs, its labels and id apart."""
    assert tt.Example.of({"question": "2 + 2?", "labels": "4", "id": 7}) == tt.Example("7", {"question": "2 + 2?"}, "4")


def test_the_same_inputs_have_the_same_id():
    """An id that is not given depends on the inputs only, not on the order of their names."""
    first = tt.Example.of({"inputs": {"a": 1, "b": "é"}, "labels": "x"})
    second = tt.Example.of({"inputs": {"b": "é", "a": 1}, "labels": "y"})
    assert first.id == second.id
    assert first.id != tt.Example.of({"a": 1, "b": "e"}).id


@pytest.mark.parametrize("value", ["a question", 3, {"inputs": "a question"}, {"inputs": {"x": object()}}])
def test_what_is_no_example_is_refused(value: object):
    """Strings, numbers and inputs that JSON cannot express (without an id) are refused early."""
    with pytest.raises(InvalidInput):
        tt.Example.of(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"by": ()},
        {"by": ("module", "module")},
        {"credit": "everyone"},
        {"repeat": True},
        {"size": 0},
        {"unit": "token"},
        {"sise": 12},
        {"failure_reward": math.inf},
    ],
)
def test_a_grouping_that_makes_no_sense_is_refused(settings: dict[str, object]):
    """Unknown fields and values never pass silently."""
    with pytest.raises(ValidationError):
        tt.Grouping(**settings)  # type: ignore[arg-type]


def test_the_presets_are_the_papers_and_dspys():
    """Grouping.paper fills to twelve diverse members; Grouping.dspy is strict, truncates and repeats."""
    assert tt.Grouping.paper() == tt.Grouping(
        missing="keep", ragged="fill", fill="random", size=12, select="diverse", advantage="grpo", format_reward=-1
    )
    assert tt.Grouping.dspy(4) == tt.Grouping(missing="strict", ragged="truncate", size=4, repeat=True)


def test_a_policy_never_shows_its_key():
    """A policy that is printed or logged does not give its key away."""
    assert "sk-123" not in repr(tt.Policy("http://127.0.0.1/v1", "sk-123", "policy", "run-1@0"))
