"""A program of two modules around a tiny random policy, small enough to train in a second; also run as a script.

As a script it trains into a store until it is killed: `looped_program.py STORE STEPS [--resume]`.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from openai import OpenAI
from tiny_llama import tiny_model, tiny_tokenizer

import tracetune as tt
from tracetune.trainers.local import LocalTrainer
from tracetune.types import Example, Rollout

TRAIN = [Example(f"t{number}", {"word": f"w{number}"}) for number in range(6)]
VAL = [Example(f"v{number}", {"word": f"w{number}"}) for number in range(20, 24)]


@cache
def client(base_url: str, api_key: str) -> OpenAI:
    """One client an endpoint."""
    return OpenAI(base_url=base_url, api_key=api_key, max_retries=0)


def ask(prompt: str, to: tt.Policy | None = None, **options: Any) -> str:
    """The completion of the policy in force, or of another one."""
    policy = to or tt.policy()
    options = {"model": policy.model, "max_tokens": 3, "temperature": 0} | options
    reply = client(policy.base_url, policy.api_key).chat.completions.create(
        messages=[{"role": "user", "content": prompt}], **options
    )
    return reply.choices[0].message.content or ""


@tt.module
def hop(word: str) -> str:
    """The first module."""
    return ask(word)


@tt.module
def answer(words: str) -> str:
    """The second module."""
    return ask(words)


@tt.program
def walk(word: str) -> str:
    """One or two hops, as the example has it, then an answer."""
    hops = 1 + int(word[1:]) % 2
    for _ in range(hops):
        word = hop(word) or "w0"
    return answer(word)


def low_words(example: Example, output: str, rollout: Rollout) -> float:
    """The share of words with a number below 18, and a little by index: rollouts that are alike teach nothing."""
    words = output.split()
    return sum(word[0] == "w" and int(word[1:]) < 18 for word in words) / 3 + rollout.index / 1000


def trainer(**settings: Any) -> LocalTrainer:
    """A trainer of the tiny model, quick to change."""
    torch.manual_seed(0)
    return LocalTrainer((tiny_model(), tiny_tokenizer()), threads=1, learning_rate=0.01, **settings)


def train(store: Path, program: Any = walk, **settings: Any) -> tt.Result:
    """Two steps of two examples and four rollouts, unless told otherwise."""
    return tt.optimize(
        program,
        TRAIN,
        low_words,
        trainer(),
        **{"store": store, "steps": 2, "examples_per_step": 2, "rollouts": 4, "progress": False} | settings,
    )


if __name__ == "__main__":
    train(
        Path(sys.argv[1]),
        steps=int(sys.argv[2]),
        resume="--resume" in sys.argv,
        on_step=lambda step, figures: print(step, flush=True),
    )
