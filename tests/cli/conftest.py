"""A store to look into, and the command line and the command line to look with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tracetune import Store
from tracetune.cli import main

HOSTILE = "\x1b[31m[bold]red[/bold]\x07\nsecond line \u202eturned"


def rollout(index: int, reward: float, acts: int) -> dict[str, Any]:
    """One rollout of a program that plans once and acts a number of times."""
    return {
        "id": f"r{index}",
        "example_id": "q1",
        "run": "try-1",
        "split": "train",
        "step": 1,
        "index": index,
        "program": "agent",
        "reward": reward,
        "calls": [
            {"module": "plan", "completion": HOSTILE},
            *({"module": "act", "completion": f"act {number}"} for number in range(acts)),
        ],
    }


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The path of a store with three rollouts of one example."""
    path = tmp_path_factory.mktemp("stores") / "traces.duckdb"
    Store(path).add_rollouts([rollout(0, 0.5, 2), rollout(1, 1.0, 3), rollout(2, 0.5, 1)])
    return path


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


@pytest.fixture
def tracetune(tmp_path, monkeypatch, capsys):
    """Gives a function that runs `tracetune` with arguments, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Finished:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        # What Python does with an exit that is a sentence.
        if isinstance(end.value.code, str):
            return Finished(1, said.out, f"{said.err}{end.value.code}\n")
        return Finished(end.value.code or 0, said.out, said.err)

    return run
