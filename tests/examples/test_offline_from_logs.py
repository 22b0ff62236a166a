"""`examples/offline_from_logs.py`: logs are made, imported and trained on, and the program earns more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "offline_from_logs.py"


def test_yesterdays_logs_raise_the_held_out_reward(tmp_path):
    """From texts and rewards alone, in a few steps, the bundled policy answers new questions better."""
    options = ["--questions", "64", "--answers", "10", "--passes", "6", "--held-out", "48", "--threads", "1"]
    finished = subprocess.run(
        [sys.executable, EXAMPLE, *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    found = re.fullmatch(r"held-out reward: ([0-9.]+) before, ([0-9.]+) after\n", finished.stdout)
    assert found is not None, finished.stdout
    before, after = map(float, found.groups())
    assert after > before + 0.1, finished.stdout
