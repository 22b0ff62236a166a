"""Who the bundled policy learned from: somebody who plays the program's modules, well or sloppily.

The prompts are made by the program's own functions, so what the policy learned and what it
is asked cannot drift apart; the questions come from the task's pre-training split alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tracetune.demo.program import MAX_HOPS, answer_prompt, hop_prompt
from tracetune.demo.task import split_of
from tracetune.types import Example

PROMPTS_PER_SCENE = 8


class Demonstration(NamedTuple):
    """A prompt as the program sends it, and what the demonstrator answers."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Demonstrator:
    """Somebody who plays both modules, and how often each thing goes wrong.

    Attributes:
        wrong_name: a hop names anybody in the facts.
        early: a hop says `done` although relations are left.
        surplus: a hop says `more` although none is left.
        wrong_form: a hop forgets `more` or `done`, an answer is the bare name.
    """

    wrong_name: float = 0.0
    early: float = 0.0
    surplus: float = 0.0
    wrong_form: float = 0.0

    def name(self, example: Example, trail: list[str], generator: random.Random) -> str:
        """Who it says comes next; a trail that has left the facts, or passed its end, stays where it is."""
        facts = _facts(example)
        if generator.random() < self.wrong_name:
            return generator.choice([name for subject, _, person in facts for name in (subject, person)])
        relations = example.inputs["question"].split()[1:]
        if len(trail) > len(relations):
            return trail[-1]
        wanted = (trail[-1], relations[len(trail) - 1])
        return next((person for subject, relation, person in facts if (subject, relation) == wanted), trail[-1])

    def hop(self, example: Example, trail: list[str], generator: random.Random) -> str:
        """What it says as module `hop`."""
        name = self.name(example, trail, generator)
        if generator.random() < self.wrong_form:
            return name
        is_last = len(trail) >= example.labels["hops"]
        slips = generator.random() < (self.surplus if is_last else self.early)
        return f"{name} {'done' if is_last != slips else 'more'}"

    def answer(self, trail: list[str], generator: random.Random) -> str:
        """What it says as module `answer`."""
        return trail[-1] if generator.random() < self.wrong_form else f"the answer is {trail[-1]}"


CLEAN = Demonstrator()
SLOPPY = Demonstrator(wrong_name=0.3, early=0.62, surplus=0.15, wrong_form=0.03)
_ASTRAY = Demonstrator(wrong_name=0.05)


def demonstrations(
    questions: list[Example], demonstrator: Demonstrator, generator: random.Random
) -> Iterator[list[Demonstration]]:
    """Scenes without end: eight demonstrations each about the same facts, of one module."""
    while True:
        example = generator.choice(questions)
        about = [
            example if generator.random() < 0.6 else other_question(example, generator)
            for _ in range(PROMPTS_PER_SCENE)
        ]
        trails = [some_trail(example, generator) for example in about]
        # The answer is the easy part: a tenth of the scenes is enough.
        if generator.random() < 0.1:
            yield [
                Demonstration(answer_prompt(example.inputs["question"], trail), demonstrator.answer(trail, generator))
                for example, trail in zip(about, trails, strict=True)
            ]
        else:
            yield [
                Demonstration(hop_prompt(**example.inputs, trail=trail), demonstrator.hop(example, trail, generator))
                for example, trail in zip(about, trails, strict=True)
            ]


def other_question(example: Example, generator: random.Random) -> Example:
    """Another pre-training question that the same facts answer."""
    facts = _facts(example)
    while True:
        start, relation, person = generator.choice(facts)
        relations = [relation]
        hops = generator.randint(1, 3)
        while len(relations) < hops and (onward := [fact[1:] for fact in facts if fact[0] == person]):
            relation, person = generator.choice(onward)
            relations.append(relation)
        question = " ".join([start, *relations])
        if split_of(question) == "pretrain":
            inputs = {"facts": example.inputs["facts"], "question": question}
            return Example(question, inputs, {"answer": person, "hops": len(relations)})


def some_trail(example: Example, generator: random.Random) -> list[str]:
    """A trail that the program could be on: mostly right so far, at times astray or too long."""
    longest = MAX_HOPS + 1 if generator.random() < 0.15 else example.labels["hops"]
    length = generator.randint(1, longest)
    names: list[str] = example.inputs["question"].split()[:1]
    while len(names) < length:
        names.append(_ASTRAY.name(example, names, generator))
    return names


def _facts(example: Example) -> list[list[str]]:
    return [fact.split() for fact in example.inputs["facts"].split("\n")]
