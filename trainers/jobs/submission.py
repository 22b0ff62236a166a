"""One job, from rows to model: uploaded once, created once, and followed to its end.

Before each request that leaves something behind, what may have been left behind already
is looked for; after it, its id is recorded. Whoever is killed in between finds it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tracetune.errors import TrainerError
from tracetune.trainers.jobs.patience import Patience
from tracetune.trainers.jobs.service import Job, JobEvent, JobRequest, JobService
from tracetune.trainers.jobs.state import Pending

Say = Callable[[str], None]
Keep = Callable[[Pending], None]


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How every job of a trainer is made.

    Attributes:
        method: "supervised" or "dpo".
        hyperparameters: as the service calls them; what is None is left to it.
        suffix: in the names of the models.
        poll_interval: seconds between two looks at a job.
        time_limit: seconds that a job may take before this process stops waiting for it.
    """

    method: str
    hyperparameters: dict[str, Any]
    suffix: str | None = None
    poll_interval: float = 10.0
    time_limit: float | None = None


class Submission:
    """Takes a pending job to its end.

    Args:
        service: where it is trained.
        settings: how.
        patience: with a service that is unavailable.
        keep: called with the pending job whenever more of it is known, before going on.
        say: called with a line for whoever watches.
    """

    def __init__(self, service: JobService, settings: JobSettings, patience: Patience, *, keep: Keep, say: Say) -> None:
        self._service = service
        self._settings = settings
        self._patience = patience
        self._keep = keep
        self._say = say

    def found(self, pending: Pending) -> Pending:
        """The pending job, with the ids of what an earlier process left at the service."""
        if pending.job_id is not None:
            return pending
        listed = self._patience.ask(lambda: self._service.file_ids(pending.file_name))
        # Services may forget a file that they have read; its job is known by it all the same.
        file_ids = [pending.file_id, *listed] if pending.file_id is not None else list(listed)
        if not file_ids:
            return pending
        job = self._patience.ask(lambda: self._service.find(file_ids, pending.since))
        return replace(pending, file_id=file_ids[0], job_id=None if job is None else job.id)

    def submitted(self, pending: Pending, *, model: str, seed: int) -> Pending:
        """The pending job, uploaded and created, by this process or by one before it."""
        if pending.file_id is None:
            file_id = self._patience.ask(
                lambda: self._service.upload(pending.file_name, pending.content),
                lambda: next(iter(self._service.file_ids(pending.file_name)), None),
            )
            pending = replace(pending, file_id=file_id)
            self._keep(pending)
        if pending.job_id is None:
            assert pending.file_id is not None
            file_ids = [pending.file_id]
            request = JobRequest(
                key=pending.key,
                model=model,
                file_id=pending.file_id,
                method=self._settings.method,
                hyperparameters={
                    name: value for name, value in self._settings.hyperparameters.items() if value is not None
                },
                seed=seed,
                suffix=self._settings.suffix,
            )
            job = self._patience.ask(
                lambda: self._service.create(request), lambda: self._service.find(file_ids, pending.since)
            )
            pending = replace(pending, job_id=job.id)
            self._keep(pending)
        return pending

    def ended(self, job_id: str) -> tuple[Job, float | None]:
        """A job that has ended, however it did, and the last training loss that it told of.

        Raises:
            TrainerError: if it takes longer than the time limit.
        """
        deadline = None if self._settings.time_limit is None else time.monotonic() + self._settings.time_limit
        told: set[str] = set()
        status, loss = "", None
        while True:
            job = self._patience.ask(lambda: self._service.job(job_id))
            if job.status != status:
                status = job.status
                self._say(f"job {job_id}: {status}")
            for event in self._patience.ask(lambda: self._service.events(job_id)):
                if event.id not in told:
                    told.add(event.id)
                    self._tell(job_id, event)
                    loss = loss if event.loss is None else event.loss
            if status in ("succeeded", "failed", "cancelled"):
                return job, loss
            if deadline is not None and time.monotonic() + self._settings.poll_interval > deadline:
                raise TrainerError(
                    f"job {job_id} is still {status} after {self._settings.time_limit:g} s; "
                    "resume the run later to pick it up, it is not submitted twice"
                )
            time.sleep(self._settings.poll_interval)

    def _tell(self, job_id: str, event: JobEvent) -> None:
        self._say(f"job {job_id}: {event.message}")
