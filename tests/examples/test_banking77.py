"""The Banking77 example runs as its docstring says, on files of one's own and a small policy."""

from __future__ import annotations

import csv
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tracetune as tt
from tracetune.demo import POLICY_FOLDER
from tracetune.types import Rollout

MESSAGES = {
    "card_arrival": ["where is my card", "my card is not here yet", "when does it come"],
    "change_pin": ["i want another pin", "how is the pin changed", "new pin please"],
    "card_lost": ["my card is gone", "somebody took my card", "i lost it"],
}


@pytest.fixture
def example(repository: Path) -> dict[str, Any]:
    """What the example's file defines."""
    return runpy.run_path(str(repository / "examples" / "banking77.py"))


def csv_file(path: Path, texts: slice) -> Path:
    """A part of the messages, as the dataset's own files have them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "category"])
        rows.writerows((text, category) for category, found in MESSAGES.items() for text in found[texts])
    return path


def run(repository: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The example as a person would run it."""
    command = [sys.executable, str(repository / "examples" / "banking77.py"), "--model", str(POLICY_FOLDER), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_it_trains_on_files_of_ones_own(repository: Path, tmp_path: Path):
    """With --train, --test and --intents it trains on those, and prints its table."""
    train, test = csv_file(tmp_path / "train.csv", slice(2)), csv_file(tmp_path / "test.csv", slice(2, 3))
    options = ["--train", str(train), "--test", str(test), "--intents", "card_arrival,change_pin", "--steps", "1"]
    done = run(repository, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    header, _, figures = done.stdout.splitlines()
    assert header == "| accuracy before | after | held-out messages | steps | minutes |"
    assert [cell.strip() for cell in figures.split("|")][3:5] == ["2", "1"]
    rollouts = tt.Store(tmp_path / "banking77.duckdb").sql("SELECT split, count(*) AS n FROM rollouts GROUP BY ALL")
    assert sorted((row["split"], row["n"]) for row in rollouts.rows()) == [("train", 8 * 8), ("val", 4)]


def test_a_file_that_is_not_there_is_named(repository: Path, tmp_path: Path):
    """A missing file, or intents that no message has, end with one sentence and no traceback."""
    absent = run(repository, tmp_path, "--train", "absent.csv")
    assert absent.returncode == 2
    assert absent.stderr.splitlines()[-1].startswith("banking77.py: error: absent.csv does not exist; name the file")
    train = csv_file(tmp_path / "train.csv", slice(2))
    unknown = run(repository, tmp_path, "--train", str(train), "--intents", "weather")
    assert unknown.returncode == 2
    assert "no message of" in unknown.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("output", "value"),
    [("change_pin", 1.0), ("change the pin", 0.4), ("Change_PIN!", 0.5), ("card_arrival", 0.0), ("", 0.0)],
)
def test_the_reward_says_how_close_an_answer_came(example: dict[str, Any], output: str, value: float):
    """1 for the label alone, half the F1 of its words below that."""
    asked = tt.Example("1", {"message": "new pin", "intents": "card_arrival, change_pin"}, "change_pin")
    assert example["reward"](asked, output, Rollout("r", "1")) == pytest.approx(value)


def test_held_out_messages_are_not_trained_on(example: dict[str, Any], tmp_path: Path):
    """Every message is there once, in an order that depends on the seed alone."""
    path = csv_file(tmp_path / "all.csv", slice(None))
    intents = ["card_arrival", "change_pin"]
    first, again, other = (example["messages"](path, intents, seed) for seed in (0, 0, 1))
    assert first == again
    assert sorted(example.id for example in first) == sorted({example.id for example in other})
    assert first != other
