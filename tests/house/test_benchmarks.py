"""The benchmarks run: on little, so that what they print says nothing, but their own checks hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ON_LITTLE = {
    "grouping.py": (["--calls", "1200", "--repeats", "1"], "| 1,200 |"),
    "ingest.py": (["--spans", "2000", "--repeats", "1"], "| rate of ingest / rate of insert |"),
    "tracing.py": (["--calls", "300", "--rounds", "2", "--burst", "400"], "| the same with English prose |"),
}


@pytest.mark.parametrize("script", ON_LITTLE)
def test_a_benchmark_runs_and_both_of_its_sides_do_the_same(repository: Path, script: str) -> None:
    """Each compares the results of its two sides before it prints their times."""
    options, row = ON_LITTLE[script]
    done = subprocess.run(
        [sys.executable, str(repository / "benchmarks" / script), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert row in done.stdout
