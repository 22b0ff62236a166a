"""What a run of jobs must remember: the model so far, and the job under way with its rows.

It is kept before each thing that cannot be undone. The key of a job is drawn once in a
run's life, so a process that takes the run up again recognises what the one before it
uploaded and created, even where nobody wrote down that it did.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tracetune.errors import CheckpointError
from tracetune.files import write_bytes, write_text
from tracetune.types import Rollout

_STATE, _ROWS = "jobs.json", "rows.jsonl"


@dataclass(frozen=True, slots=True)
class Pending:
    """A job that is to be, or under way.

    Attributes:
        step: the step that it is of.
        key: names it to its service, in the name of its file.
        content: the rows, as they are uploaded.
        since: seconds since the epoch; the job cannot be older.
        rows: how many rows there are.
        used: members that are in a row.
        skipped: members that are in none, by reason.
        policy_version: of the rollouts.
        rollouts: whose calls the rows are.
        file_id: once it is uploaded.
        job_id: once it is created.
    """

    step: int
    key: str
    content: bytes
    since: float
    rows: int
    used: int
    skipped: dict[str, int]
    policy_version: str
    rollouts: Sequence[Rollout]
    file_id: str | None = None
    job_id: str | None = None

    @property
    def file_name(self) -> str:
        """What its file is called."""
        return f"tracetune-{self.key}.jsonl"

    @property
    def sha256(self) -> str:
        """Of the rows."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class State:
    """All that a run needs to go on; a checkpoint.

    Attributes:
        step: the last step that was begun, for the environment: a job's rollouts count
            from the moment in which its rows are kept.
        settings: what must be the same in the process that goes on.
        model: the last one that was trained, or the one that the run began with.
        trained: steps that are finished.
        run_key: drawn once.
        attempts: jobs of the pending step that failed.
    """

    settings: dict[str, Any]
    model: str
    trained: int = 0
    run_key: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    attempts: int = 0
    pending: Pending | None = None

    @property
    def step(self) -> int:
        """The step that a checkpoint is kept under."""
        return self.pending.step if self.pending is not None else self.trained

    def key(self, step: int) -> str:
        """What names a step's job to its service."""
        return f"{self.run_key}-{step}-{self.attempts}"

    def finished(self, model: str) -> State:
        """The state after the pending job."""
        return replace(self, model=model, trained=self.step, attempts=0, pending=None)

    def failed(self) -> State:
        """The state after the pending job failed: the same rows can be submitted again, under a new key."""
        assert self.pending is not None
        again = replace(self, attempts=self.attempts + 1)
        pending = replace(self.pending, key=again.key(self.step), file_id=None, job_id=None)
        return replace(again, pending=pending)

    def save(self, folder: Path) -> None:
        """Write it into an empty folder, as JSON."""
        values = {
            "settings": self.settings,
            "model": self.model,
            "trained": self.trained,
            "run_key": self.run_key,
            "attempts": self.attempts,
            "pending": None,
        }
        if self.pending is not None:
            pending = {name: getattr(self.pending, name) for name in Pending.__slots__ if name != "content"}
            rollouts = [asdict(replace(rollout, output=None, calls=())) for rollout in self.pending.rollouts]
            values["pending"] = {**pending, "rollouts": rollouts, "sha256": self.pending.sha256}
            write_bytes(folder / _ROWS, self.pending.content)
        write_text(folder / _STATE, json.dumps(values, indent=1))

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> State:
        """What was saved in a folder.

        Raises:
            CheckpointError: if it is not whole, or was saved under other settings.
        """
        try:
            values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            pending = values["pending"]
            if pending is not None:
                sha256 = pending.pop("sha256")
                rollouts = [Rollout(**rollout) for rollout in pending.pop("rollouts")]
                pending = Pending(content=(folder / _ROWS).read_bytes(), rollouts=rollouts, **pending)
                if pending.sha256 != sha256:
                    raise ValueError(f"{_ROWS} is not the file that was written")  # noqa: TRY301  told below, as all
            state = cls(**{**values, "pending": pending})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{folder} is no whole checkpoint of jobs ({type(error).__name__}: {error}); resume from another"
            ) from error
        differing = sorted(name for name in settings if state.settings.get(name) != settings[name])
        if differing:
            raise CheckpointError(
                f"{folder} was written with another {' and '.join(differing)}; resume with the settings of the run"
            )
        return state
