"""The names of runs: a new run takes one that nobody has, and a resumed one finds its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from tracetune.errors import CheckpointError, InvalidInput
from tracetune.grouping import Store
from tracetune.online.checkpoints import Checkpoints

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# A run that trains on what others recorded has batches and no rollouts.
_USED = """
SELECT run, max(moment) AS last
FROM (SELECT run, started_at AS moment FROM rollouts UNION ALL SELECT run, recorded_at FROM batches)
WHERE run IS NOT NULL
GROUP BY run
"""


def run_name(run: str | None, path: Path, store: Store, *, resume: bool) -> str:
    """The name to record under; a new one is taken for good.

    Raises:
        InvalidInput: if the name would mix two runs, or is none.
        CheckpointError: if there is nothing to resume.
    """
    if run is not None and not _RUN.fullmatch(run):
        raise InvalidInput(f"run {run!r} names a folder too: use letters, digits, '.', '_' and '-', not first a sign")
    used: dict[str, datetime] = {row["run"]: row["last"] for row in store.sql(_USED).rows()}
    if resume:
        resumable = [name for name in used if Checkpoints(path, name).latest() is not None]
        if run is None and resumable:
            return max(resumable, key=lambda name: used[name])
        if run is None or run not in resumable:
            raise CheckpointError(
                f"{path} has no checkpoint of {run or 'any run'} to resume; start without resume, or name one of: "
                f"{', '.join(sorted(resumable)) or 'none'}"
            )
        return run

    def is_free(name: str) -> bool:
        # The folder is made here and now, so of two processes that begin at once only one gets the name.
        return name not in used and Checkpoints(path, name).reserve()

    if run is None:
        return next(name for name in _free_names() if is_free(name))
    if not is_free(run):
        raise InvalidInput(
            f"run {run!r} is already in {path} or its checkpoints; pass resume=True to go on, or another name"
        )
    return run


def _free_names() -> Iterator[str]:
    number = 1
    while True:
        yield f"run-{number}"
        number += 1
