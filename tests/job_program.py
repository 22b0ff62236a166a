"""A program that calls a policy elsewhere, and its training by jobs, to be killed and taken up again."""

from __future__ import annotations

import itertools
from pathlib import Path

from openai import OpenAI

import tracetune as tt
from tracetune.trainers import make_trainer
from tracetune.types import Example, Rollout

EXAMPLES = [Example(f"q{number}", {"question": f"{number} + 2?"}) for number in range(2)]

_rewards = itertools.count()


@tt.module
def answer(question: str) -> str:
    """The only module."""
    policy = tt.policy()
    with OpenAI(base_url=policy.base_url, api_key=policy.api_key, max_retries=0) as client:
        reply = client.chat.completions.create(model=policy.model, messages=[{"role": "user", "content": question}])
    return reply.choices[0].message.content or ""


@tt.program
def solve(question: str) -> str:
    """One call."""
    return answer(question)


def reward(example: Example, output: str, rollout: Rollout) -> float:
    """One number after the other, so that no group is constant."""
    return float(next(_rewards) % 5)


def train(kind: str, store: Path, base_url: str, *, resume: bool = False) -> tt.Result:
    """Two rounds of jobs."""
    trainer = make_trainer(
        kind, model="gpt-4.1-nano-2025-04-14", base_url=base_url, api_key="sk-loopback", yes=True, poll_interval=0.01
    )
    return tt.optimize(
        solve,
        EXAMPLES,
        reward,
        trainer,
        store=store,
        run="jobs",
        steps=2,
        examples_per_step=1,
        rollouts=3,
        resume=resume,
        progress=False,
    )
