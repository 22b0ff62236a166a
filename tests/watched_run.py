"""A run of a trainer that learns nothing; also a script, which says when it has begun and then waits to be killed.

As a script: `watched_run.py STORE RUN [--resume] [--async | --isolated]`.
"""

from __future__ import annotations

import importlib
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tracetune as tt
from tracetune.types import Capabilities, Environment, Policy, StepReport

POLICY = Policy("http://127.0.0.1:1/v1", "key", "policy", "run-1@0")


@dataclass(frozen=True)
class Weights:
    """A checkpoint of one small file."""

    step: int

    def save(self, folder: Path) -> None:
        """Write the file."""
        (folder / "weights").write_text(str(self.step))


class Watching:
    """Makes rollouts and learns nothing from them."""

    capabilities = Capabilities()

    def fit(self, env: Environment) -> Policy:
        """Make every remaining step's rollouts, align them, and keep a checkpoint."""
        done = 0 if env.resume_from is None else int((env.resume_from / "weights").read_text())
        if env.val:
            env.evaluate(POLICY, step=done)
        for step in range(done + 1, env.plan.steps + 1):
            rollouts = env.rollouts(env.examples(step), env.plan.rollouts, POLICY, "train", step=step)
            batch = env.groups(rollouts, env.plan.grouping)
            env.checkpoint(Weights(step))
            report = StepReport(
                step=step, loss=0.0, kl=0.0, clip_fraction=0.0, entropy=0.0, grad_norm=0.0, tokens=0, seconds=0.0,
                used=0,
            )  # fmt: skip
            env.report(report, rollouts, batch)
        return POLICY


def echo(word: str) -> str:
    """A program that gives its word."""
    return word


def wait(word: str) -> str:
    """A program whose second training rollout waits without end."""
    if word == "bee":
        print("begun", flush=True)
        time.sleep(1000)
    return word


async def block(word: str) -> str:
    """The same, async: it blocks its event loop."""
    return wait(word)


def one(example: Any, output: Any, rollout: Any) -> float:
    """A reward for whatever came."""
    return 1.0


def train(store: Path, program: Any = echo, **settings: Any) -> tt.Result:
    """Two steps of two examples, a rollout each, one at a time."""
    return tt.optimize(
        program,
        [{"id": word, "inputs": {"word": word}} for word in ("ant", "bee")],
        one,
        Watching(),
        val=[{"id": "cow", "inputs": {"word": "cow"}}],
        **{
            "store": store, "steps": 2, "examples_per_step": 2, "rollouts": 1, "max_concurrency": 1, "timeout": None,
            "progress": False,
        } | settings,
    )  # fmt: skip


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    by_name = importlib.import_module("watched_run")  # an isolated program is none of the script that is run
    train(
        Path(sys.argv[1]),
        block if "--async" in sys.argv else by_name.wait,
        run=sys.argv[2],
        resume="--resume" in sys.argv,
        isolate=("program",) if "--isolated" in sys.argv else (),
    )
