"""The demo's task by each trainer that learns by steps: one word changes.

    python benchmarks/trainers.py
    python benchmarks/trainers.py --trainers local trl --steps 60

`tinker` learns at a service on loopback, in a process of its own, that trains the model
that it is asked for: the same bundled policy. Seconds are those of one machine that plays
both sides, and say nothing of a service.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tracetune as tt
from tracetune.demo import POLICY_FOLDER, examples, reward
from tracetune.demo.program import find_person
from tracetune.trainers import make_trainer

SERVICE = Path(__file__).resolve().parents[1] / "tests" / "tinker_service.py"


def main() -> None:
    """Train with each, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", nargs="+", default=["local", "trl", "tinker"])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--held-out", type=int, default=240)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print(f"{options.steps} steps of 6 examples x 12 rollouts, {options.held_out} held-out questions\n")
    print("| trainer | reward before | after | rollouts that failed before | after | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in options.trainers:
        with tempfile.TemporaryDirectory() as folder, settings_of(name, options.threads) as settings:
            started = time.perf_counter()
            result = train(make_trainer(name, learning_rate=3e-4, **settings), Path(folder), options)
            seconds = time.perf_counter() - started
        before, after = result.before, result.after
        assert before is not None
        assert after is not None
        cells = (
            f"`{name}`",
            f"{before.reward:.3f}",
            f"{after.reward:.3f}",
            before.failed,
            after.failed,
            f"{seconds:.0f}",
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def train(trainer: Any, folder: Path, options: argparse.Namespace) -> tt.Result:
    """What the demo does, with another trainer."""
    return tt.optimize(
        find_person,
        examples("train", 2000),
        reward,
        trainer,
        store=folder / "traces.duckdb",
        steps=options.steps,
        examples_per_step=6,
        rollouts=12,
        val=examples("val", options.held_out),
        max_concurrency=72,
        progress=False,
    )


@contextmanager
def settings_of(name: str, threads: int) -> Iterator[dict[str, Any]]:
    """What a trainer of that name is made of, and whatever has to run beside it."""
    if name != "tinker":
        yield {"model": POLICY_FOLDER, "threads": threads}
        return
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TINKER_TELEMETRY": "0"}
    service = subprocess.Popen(
        [sys.executable, SERVICE, POLICY_FOLDER, "0"], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert service.stdout is not None
        address = service.stdout.readline().split()[0].partition("=")[2]
        os.environ["TINKER_TELEMETRY"] = "0"
        yield {"model": str(POLICY_FOLDER), "base_url": address, "api_key": "tml-loopback", "loss": "ppo"}
    finally:
        service.kill()
        service.wait()


if __name__ == "__main__":
    main()
