"""The demo's program: find who a question leads to, one relation at a time.

`hop` runs as often as the model decides, then `answer` once. What makes this program
trainable is the decorators, and a client that speaks to `tt.policy()`.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import chain, repeat

from openai import OpenAI

import tracetune as tt

MAX_HOPS = 6


@tt.program
def find_person(facts: str, question: str) -> str:
    """The name that the question leads to: "ann friend boss" asks for the boss of ann's friend."""
    trail = [question.split()[0]]
    is_last = False
    while not is_last and len(trail) <= MAX_HOPS:
        name, is_last = hop(facts, question, trail)
        trail.append(name)
    return answer(question, trail)


@tt.module
def hop(facts: str, question: str, trail: list[str]) -> tuple[str, bool]:
    """The next name on the trail, and whether the trail ends there."""
    name, word = _parse(r"(\w+) (more|done)", _ask(hop_prompt(facts, question, trail)))
    return name, word == "done"


@tt.module
def answer(question: str, trail: list[str]) -> str:
    """The answer to the question, given the whole trail."""
    (name,) = _parse(r"the answer is (\w+)", _ask(answer_prompt(question, trail)))
    return name


def hop_prompt(facts: str, question: str, trail: list[str]) -> str:
    """What `hop` asks: the facts, and the path so far, `ann friend bob boss ?`."""
    names = chain(trail[1:], repeat("?"))
    path = " ".join(f"{relation} {name}" for relation, name in zip(question.split()[1:], names, strict=False))
    return f"next name , more or done\n{facts}\n{trail[0]} {path}"


def answer_prompt(question: str, trail: list[str]) -> str:
    """What `answer` asks."""
    return f"say the answer\nquestion {question}\ntrail {' '.join(trail)}"


def _parse(form: str, text: str) -> tuple[str, ...]:
    if not (match := re.fullmatch(form, text)):
        raise tt.FormatError(f"expected a completion of the form {form}, not {text!r}")
    return match.groups()


def _ask(prompt: str) -> str:
    policy = tt.policy()
    response = _client(policy.base_url, policy.api_key).chat.completions.create(
        model=policy.model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=8
    )
    return response.choices[0].message.content or ""


@cache  # one client an endpoint, so that its connections are used again
def _client(base_url: str, api_key: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key=api_key)
