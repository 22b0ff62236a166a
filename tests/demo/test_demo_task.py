"""The demo's task: its splits do not mix, its questions have the answer they say, its reward is as documented."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tracetune.demo.task import FACTS_PER_EXAMPLE, NAMES, RELATIONS, examples, reward, split_of
from tracetune.errors import InvalidInput
from tracetune.types import Call, Example, Rollout

SPLITS = ("pretrain", "train", "val")


def test_no_question_is_in_two_splits():
    """Over many seeds, the questions of the three splits have nothing in common."""
    questions = {
        split: {example.inputs["question"] for seed in range(3) for example in examples(split, 300, seed)}
        for split in SPLITS
    }
    pairs = (("pretrain", "train"), ("pretrain", "val"), ("train", "val"))
    shared = [questions[one] & questions[other] for one, other in pairs]
    assert shared == [set(), set(), set()]


def test_a_question_belongs_to_the_split_that_gives_it():
    """`split_of` says of every example's question where it came from."""
    assert {split: {split_of(e.inputs["question"]) for e in examples(split, 200)} for split in SPLITS} == {
        split: {split} for split in SPLITS
    }


@pytest.mark.parametrize("split", SPLITS)
def test_following_the_facts_gives_the_answer(split):
    """Seven facts about known people, each look-up with one result, lead from the start to the labelled answer."""
    for example in examples(split, 200, seed=5):
        facts = [tuple(fact.split()) for fact in example.inputs["facts"].split("\n")]
        lookup = {(subject, relation): person for subject, relation, person in facts}
        name, *relations = example.inputs["question"].split()
        for relation in relations:
            name = lookup[name, relation]
        assert (name, len(relations)) == (example.labels["answer"], example.labels["hops"])
        assert len(facts) == len(lookup) == FACTS_PER_EXAMPLE
        assert {word for fact in facts for word in fact} <= {*NAMES, *RELATIONS}


def test_questions_are_all_different_and_of_one_to_three_relations():
    """No question comes twice, and every length occurs."""
    made = examples("val", 500)
    assert len({example.inputs["question"] for example in made}) == len({example.id for example in made}) == 500
    assert {example.labels["hops"] for example in made} == {1, 2, 3}


def test_another_process_makes_the_same_examples():
    """The examples of a seed do not depend on the process's own hash seed."""
    code = "from tracetune.demo import examples; print([e.id for e in examples('val', 20, 7)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str([example.id for example in examples("val", 20, 7)])


def test_an_unknown_split_is_refused():
    """The message names the splits that there are."""
    with pytest.raises(InvalidInput, match="no split 'test'; its splits are pretrain, train, val"):
        examples("test", 1)


@pytest.mark.parametrize(
    ("output", "hops", "expected"),
    [
        ("cat", 2, 1.0),  # right, straight
        ("cat", 4, 0.8),  # right, two hops too many
        ("bob", 1, 0.1),  # stopped early, in the right form
        ("bob", 2, 0.1),  # wrong
        ("bob", 6, -0.3),  # wrong, and never stopped by itself
    ],
)
def test_the_reward_is_for_the_answer_its_form_and_no_surplus_hops(output, hops, expected):
    """0.9 for the right name, 0.1 for the form, 0.1 off for each surplus hop."""
    example = Example("q", {"facts": "", "question": "ann friend boss"}, {"answer": "cat", "hops": 2})
    calls = [Call(f"c{i}", "r", "hop", invocation=i) for i in range(hops)] + [Call("a", "r", "answer")]
    assert reward(example, output, Rollout("r", "q", calls=calls)) == pytest.approx(expected)
