"""Plain Python and the OpenAI SDK: three decorators are all that a program needs to be trained.

The program looks a person up in facts, hop by hop. Its client is made from the environment,
as in any service, and asks for a model by a name that is written into it; `optimize` points
both at the policy while it trains.

    python examples/plain_python.py --steps 60
"""

from __future__ import annotations

import argparse
import re

from openai import OpenAI

import tracetune as tt
from tracetune.demo import POLICY_FOLDER, examples, reward
from tracetune.demo.program import answer_prompt, hop_prompt

MODEL = "gpt-4o-mini"
MOST_HOPS = 6


def ask(form: str, prompt: str) -> tuple[str, ...]:
    """The model's answer, in the form that is needed."""
    reply = OpenAI().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=8
    )
    text = reply.choices[0].message.content or ""
    if not (match := re.fullmatch(form, text)):
        raise tt.FormatError(f"expected a completion of the form {form}, not {text!r}")
    return match.groups()


@tt.module
def hop(facts: str, question: str, trail: list[str]) -> tuple[str, bool]:
    """The next name, and whether it is the last."""
    name, word = ask(r"(\w+) (more|done)", hop_prompt(facts, question, trail))
    return name, word == "done"


@tt.module
def answer(question: str, trail: list[str]) -> str:
    """The answer, given all names."""
    return ask(r"the answer is (\w+)", answer_prompt(question, trail))[0]


@tt.program
def find(facts: str, question: str) -> str:
    """The person whom a question leads to."""
    trail, is_last = question.split()[:1], False
    while not is_last and len(trail) <= MOST_HOPS:
        name, is_last = hop(facts, question, trail)
        trail.append(name)
    return answer(question, trail)


def main() -> None:
    """Train, and print the reward on held-out questions before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--val", type=int, default=60, help="how many held-out questions")
    options = parser.parse_args()
    result = tt.optimize(
        find,
        examples("train", 200),
        reward,
        "local",
        model=POLICY_FOLDER,
        store="plain_python.duckdb",
        steps=options.steps,
        val=examples("val", options.val),
        models={MODEL: "policy"},
        export_env=True,
    )
    if result.before and result.after:
        print(f"held-out reward {result.before.reward:.2f} -> {result.after.reward:.2f}")


if __name__ == "__main__":
    main()
