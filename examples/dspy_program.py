"""A DSPy program that learns to find people, with no decorator but the program's: its predictors are the modules.

It starts from the small policy that comes with tracetune, which knows few words; so it has
an adapter of its own in place of DSPy's longer prompts:

    python examples/dspy_program.py --steps 60
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

import tracetune as tt
from tracetune.demo import POLICY_FOLDER, task
from tracetune.demo.program import MAX_HOPS, answer_prompt, hop_prompt
from tracetune.trainers.local import LocalTrainer


class FewWords(dspy.Adapter):
    """Prompts and answers in the words that the policy knows."""

    forms = {"name, word": r"(\w+) (more|done)", "person": r"the answer is (\w+)"}  # noqa: RUF012  DSPy copies it

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The one message."""
        make = hop_prompt if "facts" in inputs else answer_prompt
        return [{"role": "user", "content": make(**inputs)}]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """The output fields, or the error that makes the rollout a format error."""
        match = re.fullmatch(self.forms[", ".join(signature.output_fields)], completion)
        if match is None:
            raise AdapterParseError("FewWords", signature, completion)
        return dict(zip(signature.output_fields, match.groups(), strict=True))


class FindPerson(dspy.Module):
    """Hops from name to name, and says where it came to."""

    def __init__(self) -> None:
        super().__init__()
        self.hop = dspy.Predict("facts, question, trail: list[str] -> name, word")
        self.answer = dspy.Predict("question, trail: list[str] -> person")

    def forward(self, facts: str, question: str) -> str:
        """The person whom the question leads to."""
        trail, word = [question.split()[0]], "more"
        while word == "more" and len(trail) <= MAX_HOPS:
            hop = self.hop(facts=facts, question=question, trail=trail)
            trail, word = [*trail, hop.name], hop.word
        return str(self.answer(question=question, trail=trail).person)


finder = FindPerson()


@tt.program
def find_person(facts: str, question: str) -> str:
    """The DSPy program, run on the policy in force."""
    policy = tt.policy()
    lm = dspy.LM(f"openai/{policy.model}", api_base=policy.base_url, api_key=policy.api_key, max_tokens=8)
    with dspy.context(lm=lm, adapter=FewWords()):
        return str(finder(facts=facts, question=question))


def main() -> None:
    """Train, and print the reward on held-out questions before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--val", type=int, default=60, help="how many held-out questions")
    options = parser.parse_args()
    trainer = LocalTrainer(POLICY_FOLDER, learning_rate=3e-4)
    train, val = task.examples("train", 200), task.examples("val", options.val)
    result = tt.optimize(
        find_person, train, task.reward, trainer, store="dspy_program.duckdb", steps=options.steps, val=val
    )
    if result.before and result.after:
        print(f"held-out reward {result.before.reward:.2f} -> {result.after.reward:.2f}")


if __name__ == "__main__":
    main()
