"""Kills at random moments: what was acknowledged is in the store, once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_processes_that_are_killed_lose_and_repeat_nothing(repository: Path) -> None:
    """Writers and the process that ingests, killed at any moment; `--kills 300` is for whoever wants to be sure."""
    command = [sys.executable, repository / "benchmarks/kills.py", "--kills", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
