"""Two processes that train together: one leads, the other follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import launched_training
import pytest
import torch
from safetensors.torch import load_file

import tracetune as tt

SCRIPT = Path(launched_training.__file__)


def launched(folder: Path, processes: int = 2) -> list[dict[str, object]]:
    """What each process of `accelerate launch` saw."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    quiet = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [*command, *quiet, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.filterwarnings("ignore:some members have no log-probabilities")
def test_two_processes_learn_as_one_and_one_of_them_runs_the_program(tmp_path):
    """Weights after stored steps are equal in both and those of one process; online, one process runs and records."""
    leader, follower = launched(tmp_path)

    alone = launched_training.trainer(learning_rate=1e-3)
    assert leader["stored"] == follower["stored"]
    for report, expected in zip(leader["stored"], launched_training.step_on_stored(alone), strict=True):
        assert report.pop("skipped") == expected.pop("skipped")
        assert report == pytest.approx(expected, rel=1e-4)
    assert leader["pairs"] == follower["pairs"]
    for report, method in zip(leader["pairs"], ("dpo", "sft"), strict=True):
        expected = launched_training.step_on_pairs(method)
        for figure in ("skipped", "kl", "entropy"):
            assert report.pop(figure) == expected.pop(figure)
        assert report == pytest.approx(expected, rel=1e-4)
    first, second = (load_file(tmp_path / f"stored-{rank}.safetensors") for rank in (0, 1))
    for name, weight in launched_training.weights(alone).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], weight, rtol=0.0, atol=1e-5, msg=name)

    assert follower["online"] == leader["online"]
    assert sorted(path.name for path in tmp_path.glob("program-ran-in-*")) == ["program-ran-in-0"]
    assert leader["failed"] == "ConnectionError: the tracker is away"
    assert follower["failed"] == (
        "TrainerError: the first process of this training stopped (ConnectionError: the tracker is away); "
        "see what it printed"
    )
    assert leader["resumed"] == follower["resumed"] == [3]
    store = tt.Store(tmp_path / "t.duckdb")
    counted = store.sql("SELECT run, split, step, count(*) AS n FROM rollouts GROUP BY ALL ORDER BY ALL")
    assert [tuple(row.values()) for row in counted.rows()] == [
        ("run-1", "train", 1, 8),
        ("run-1", "train", 2, 8),
        ("run-1", "train", 3, 8),
        ("run-1", "val", 0, 4),
        ("run-1", "val", 2, 4),
        ("run-2", "train", 1, 8),
    ]
    assert not list((tmp_path / "t.duckdb.spool").glob("*.open.jsonl"))
