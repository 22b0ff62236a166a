"""What a fine-tuning service is to the trainers here: files, jobs and their events.

A service says of each failure whether asking again can help. It never asks again by
itself: a request to create a job that got no answer may have created it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tracetune.errors import TrainerError


class Unavailable(TrainerError):
    """A service that is busy, broken or silent now, and may answer later.

    Attributes:
        retry_after: seconds that it asks to wait, or None.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a job is created with.

    Attributes:
        key: names the request; the same one always stands for the same job.
        model: what is trained further.
        file_id: the uploaded rows.
        method: "supervised" or "dpo".
        hyperparameters: of the method, as the service calls them.
    """

    key: str
    model: str
    file_id: str
    method: str
    hyperparameters: dict[str, Any]
    seed: int
    suffix: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its service tells of it.

    Attributes:
        status: "succeeded", "failed" and "cancelled" are its ends; any other is on the way there.
        model: the trained model's name, once it has succeeded.
        error: the service's own words, where it failed.
        tokens: what was trained on and is charged, once that is known.
    """

    id: str
    status: str
    model: str | None = None
    error: str | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; `loss` is the training loss, where the event tells it."""

    id: str
    message: str
    loss: float | None = None


class JobService(Protocol):
    """A fine-tuning service.

    Every method raises `Unavailable` where asking again may help, and `TrainerError`
    with the service's own message where it cannot.
    """

    def upload(self, name: str, content: bytes) -> str:
        """Upload a file of rows; gives its id."""

    def file_ids(self, name: str) -> Sequence[str]:
        """The ids of the uploaded files of that name, the newest first."""

    def create(self, request: JobRequest) -> Job:
        """Create a job."""

    def find(self, file_ids: Sequence[str], since: float) -> Job | None:
        """The newest job that was created of one of these files, none of them before a time."""

    def job(self, job_id: str) -> Job:
        """A job as it is now."""

    def events(self, job_id: str) -> Sequence[JobEvent]:
        """The newest events of a job, oldest first; empty where the service tells none."""
