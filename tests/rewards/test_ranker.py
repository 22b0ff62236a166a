"""A model that ranks: one question for all outputs of an example, and one reward for each."""

from __future__ import annotations

import json

import pytest

from tracetune.errors import InvalidInput, JudgeError
from tracetune.rewards import ranker
from tracetune.types import Example

SUM = Example("q1", {"sum": "2 + 2"}, labels=4)


def longest_first(request) -> str:
    """A model that likes long answers, and reads the question as it must."""
    answers = json.loads(request["messages"][1]["content"])["answers"]
    return json.dumps({"ranking": sorted(map(int, answers), key=lambda number: -len(answers[str(number)]))})


def first_first(request) -> str:
    """A model that likes what stands first."""
    return json.dumps({"ranking": list(map(int, json.loads(request["messages"][1]["content"])["answers"]))})


def test_rewards_lie_evenly_from_the_best_to_the_worst(server):
    """Each output earns by its place, whatever the order in which outputs came, from one request."""
    server.answers = [longest_first]
    rank = ranker("the longest", **server.settings)
    assert rank(SUM, ["aa", "a", "aaaa", "aaa", "aaaaa"]) == [0.25, 0.0, 0.75, 0.5, 1.0]
    assert len(server.requests) == 1
    asked = json.loads(server.requests[0]["messages"][1]["content"])
    assert (asked["task"], asked["reference"], sorted(asked["answers"])) == ({"sum": "2 + 2"}, 4, list("12345"))


def test_equal_outputs_earn_the_same_and_are_shown_once(server):
    """What is the same cannot be better: duplicates share a place, and those without rivals earn 0.5."""
    server.answers = [longest_first]
    rank = ranker("the longest", **server.settings)
    assert rank(SUM, ["a", "aaa", "a", {"b": 1}, "aa", {"b": 1}][:3]) == [0.0, 1.0, 0.0]
    assert len(json.loads(server.requests[0]["messages"][1]["content"])["answers"]) == 2
    assert rank(SUM, ["a", "a", "a"]) == [0.5, 0.5, 0.5]
    assert (rank(SUM, ["a"]), rank(SUM, [])) == ([0.5], [])
    assert len(server.requests) == 1


def test_the_order_of_the_outputs_changes_nothing(server):
    """The model sees the same question however the outputs come, so that a cache knows it."""
    server.answers = [first_first]
    rank = ranker("any", **server.settings)
    outputs = ["one", "two", "three", "four"]
    straight = dict(zip(outputs, rank(SUM, outputs), strict=True))
    assert dict(zip(outputs[::-1], rank(SUM, outputs[::-1]), strict=True)) == straight
    assert server.requests[0] == server.requests[1]


def test_samples_see_other_orders(server):
    """A model that likes what stands first is evened out: over many samples no output wins by its place."""
    server.answers = [first_first]
    rewards = ranker("any", samples=24, **server.settings)(SUM, ["one", "two", "three"])
    assert sum(rewards) == pytest.approx(1.5)
    assert all(0.25 < reward < 0.75 for reward in rewards)


@pytest.mark.parametrize("answer", ['{"ranking": [1, 2]}', '{"ranking": [1, 2, 2]}', '{"ranking": "213"}', "[2, 1, 3]"])
def test_a_ranking_that_is_none_is_asked_again(server, answer):
    """Each number must be there once; else the model is told so."""
    server.answers = [answer, '{"ranking": [3, 1, 2]}']
    assert sorted(ranker("any", **server.settings)(SUM, ["a", "b", "c"])) == [0.0, 0.5, 1.0]
    assert "ranking" in server.requests[1]["messages"][3]["content"]
    server.answers = [answer]
    with pytest.raises(JudgeError, match="no answer in the asked form"):
        ranker("any", attempts=2, **server.settings)(SUM, ["a", "b", "c"])


def test_rankings_are_cached(server, tmp_path):
    """The same outputs are ranked once, in whatever order they come."""
    server.answers = [longest_first]
    rank = ranker("the longest", cache=tmp_path / "answers.sqlite", **server.settings)
    assert rank(SUM, ["a", "aa"]) == [0.0, 1.0]
    assert rank(SUM, ["aa", "a"]) == [1.0, 0.0]
    assert len(server.requests) == 1


@pytest.mark.parametrize(("rubric", "samples"), [("", 1), ("any", 0)])
def test_a_ranker_that_makes_no_sense_is_refused(rubric, samples):
    """Without a rubric or a sample there is nothing to ask."""
    with pytest.raises(InvalidInput):
        ranker(rubric, samples=samples, model="openai/judge")
