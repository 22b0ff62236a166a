"""Checkpoints on disk: a folder a step, written whole or not at all.

A checkpoint is written into a folder beside its place and renamed when every byte is
on disk, so a folder called `step-000012` is always complete, whatever was killed when.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from tracetune.errors import CheckpointError
from tracetune.files import FOLDER_MODE, make_folder, make_private
from tracetune.tracer import checkpoints_folder
from tracetune.types import Checkpoint

_STEP = re.compile(r"step-(\d{6,})")


class Checkpoints:
    """The checkpoints of one run, under `<store>.checkpoints/<run>/`.

    Only the newest two are kept: the second is there for the moment in which the
    first is being replaced.

    Example:
        >>> Checkpoints(Path("demo.duckdb"), "demo-1").folder.relative_to(Path.cwd().resolve()).as_posix()
        'demo.duckdb.checkpoints/demo-1'
    """

    def __init__(self, store: Path, run: str) -> None:
        self.folder = checkpoints_folder(store) / run

    @staticmethod
    def runs(store: Path) -> list[str]:
        """The runs that have begun beside a store, with a checkpoint or without, in the order of their names."""
        folder = checkpoints_folder(store)
        return sorted(run.name for run in folder.iterdir() if run.is_dir()) if folder.is_dir() else []

    def reserve(self) -> bool:
        """Take the run's folder for a new run; False if there is one, of whatever run."""
        make_folder(self.folder.parent)
        try:
            self.folder.mkdir(FOLDER_MODE)
        except FileExistsError:
            return False
        return True

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        complete = self._complete()
        return complete[max(complete)] if complete else None

    def latest_step(self) -> int:
        """The step of the newest complete checkpoint; 0 where there is none."""
        return max(self._complete(), default=0)

    def keep(self, state: Checkpoint) -> Path:
        """Write a checkpoint, then forget those before the newest two.

        Raises:
            CheckpointError: if it cannot be written whole; those before it stay.
        """
        place = self.folder / f"step-{state.step:06d}"
        unfinished = self.folder / f"unfinished-{state.step:06d}-{os.getpid()}"
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            make_folder(unfinished)
            state.save(unfinished)
            make_private(unfinished)
            for path in [*unfinished.rglob("*"), unfinished]:
                _to_disk(path)
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise CheckpointError(
                f"the checkpoint of step {state.step} could not be written to {self.folder} ({error}); free the disk, "
                "then resume after the last one"
            ) from error
        replaced = self.folder / f"replaced-{state.step:06d}-{os.getpid()}"
        if place.exists():
            place.rename(replaced)
        unfinished.rename(place)
        _to_disk(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        complete = self._complete()
        for step in sorted(complete)[:-2]:
            shutil.rmtree(complete[step])
        return place

    def _complete(self) -> dict[int, Path]:
        if not self.folder.is_dir():
            return {}
        matches = ((_STEP.fullmatch(path.name), path) for path in self.folder.iterdir())
        return {int(match.group(1)): path for match, path in matches if match}


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
