"""Stored groups and a fine-tuning service: one job, from logs that no program was run for."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from cli.conftest import tracetune
from fine_tuning_server import BASE_MODEL, FineTuningServer

import tracetune as tt

__all__ = ["tracetune"]  # a fixture


@pytest.fixture
def service():
    """A service on loopback."""
    with FineTuningServer() as server:
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three answers to each of four questions."""
    path = tmp_path / "logs.duckdb"
    tt.Store(path).add_rollouts(
        {
            "example_id": f"q{question}",
            "run": "yesterday",
            "reward": reward,
            "calls": [
                {
                    "module": "answer",
                    "messages": [{"role": "user", "content": f"{question} + 2?"}],
                    "completion": text,
                }
            ],
        }
        for question in range(4)
        for text, reward in (("right", 1.0), ("wrong", 0.0), ("half right", 0.5))
    )
    return path


def arguments(store: Path, service: FineTuningServer, *more: str) -> tuple[str, ...]:
    """The command that trains there."""
    settings = [f"base_url={service.upstream.base_url}", f"api_key={service.upstream.api_key}", "poll_interval=0.01"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    return ("train", str(store), "--trainer", "openai", "--model", BASE_MODEL, "--held-out", "0", *chosen, *more)


def test_yesterdays_logs_make_a_job(tracetune, store, service):
    """The best answer to each question is uploaded, one job is made of them, and its model is the policy."""
    finished = tracetune(*arguments(store, service, "--yes", "--run", "tuned"))
    assert finished.status == 0, finished.stderr
    ((_, content),) = service.files.values()
    rows = [orjson.loads(line) for line in content.splitlines()]
    assert sorted((row["messages"][0]["content"], row["messages"][-1]["content"]) for row in rows) == [
        (f"{question} + 2?", "right") for question in range(4)
    ]
    (job,) = service.jobs
    policies = tt.Store(store).sql("SELECT version FROM policies ORDER BY step").rows()
    assert [policy["version"] for policy in policies] == ["tuned@0", "tuned@1"]
    assert tt.Store(store).sql("SELECT DISTINCT job_id FROM jobs WHERE status = 'succeeded'").rows() == [
        {"job_id": job}
    ]
    again = tracetune(*arguments(store, service, "--yes", "--run", "tuned", "--resume"))
    assert (again.status, len(service.jobs), len(service.files)) == (0, 1, 1)


def test_nothing_is_uploaded_without_a_yes(tracetune, store, service):
    """Nobody sits at a terminal, so the command says what it would do and what it would cost, and does not."""
    finished = tracetune(*arguments(store, service))
    assert finished.status == 1
    assert "nobody is here to confirm" in finished.stderr
    assert "about $" in finished.stderr
    assert (service.files, service.jobs) == ({}, {})
