"""Checkpoints are whole or not there at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tracetune.errors import CheckpointError
from tracetune.online.checkpoints import Checkpoints


@dataclass
class Weights:
    """A checkpoint of one small file."""

    step: int
    fails: bool = False

    def save(self, folder: Path) -> None:
        """Write the file, and then perhaps find the disk full."""
        (folder / "weights").write_text(str(self.step))
        if self.fails:
            raise OSError("No space left on device")


def files(checkpoints: Checkpoints) -> dict[str, str]:
    """Everything under the run's folder."""
    return {
        path.relative_to(checkpoints.folder).as_posix(): path.read_text()
        for path in sorted(checkpoints.folder.rglob("*"))
        if path.is_file()
    }


def test_the_newest_two_are_kept(tmp_path: Path):
    """Older checkpoints go, the newest is the latest, whatever the number of digits."""
    checkpoints = Checkpoints(tmp_path / "a.duckdb", "run-1")
    assert (checkpoints.latest(), checkpoints.latest_step()) == (None, 0)
    for step in (1, 2, 999_999, 1_000_000):
        checkpoints.keep(Weights(step))
    assert files(checkpoints) == {"step-1000000/weights": "1000000", "step-999999/weights": "999999"}
    assert checkpoints.latest_step() == 1_000_000


def test_a_checkpoint_that_fails_half_way_is_none(tmp_path: Path):
    """What could not be written whole is never taken for a checkpoint, and the last one stays."""
    checkpoints = Checkpoints(tmp_path / "a.duckdb", "run-1")
    checkpoints.keep(Weights(3))
    with pytest.raises(CheckpointError, match=r"of step 4 could not be written .*No space left on device.* free the"):
        checkpoints.keep(Weights(4, fails=True))
    assert checkpoints.latest() == checkpoints.folder / "step-000003"
    checkpoints.keep(Weights(4))
    assert files(checkpoints) == {"step-000003/weights": "3", "step-000004/weights": "4"}


def test_a_step_made_again_replaces_its_checkpoint(tmp_path: Path):
    """The same step written twice is there once, in its newer form."""
    checkpoints = Checkpoints(tmp_path / "a.duckdb", "run-1")
    checkpoints.keep(Weights(1))
    (checkpoints.folder / "step-000001" / "weights").write_text("old")
    checkpoints.keep(Weights(1))
    assert files(checkpoints) == {"step-000001/weights": "1"}


def test_a_name_is_given_to_one_run_only(tmp_path: Path):
    """Of two runs that begin at once, one gets the name."""
    checkpoints = Checkpoints(tmp_path / "a.duckdb", "run-1")
    assert [checkpoints.reserve(), checkpoints.reserve()] == [True, False]
    assert checkpoints.latest() is None
