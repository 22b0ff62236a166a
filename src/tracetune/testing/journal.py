"""A journal that keeps what a trainer records in lists, for tests to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tracetune.types import Completion, GroupBatch, Policy, StepReport


@dataclass(frozen=True, slots=True)
class RecordedPolicy:
    """A version of the policy that came into force."""

    policy: Policy
    step: int
    trainer: str


@dataclass(frozen=True, slots=True)
class RecordedBatch:
    """What a step learned from, and what came of it."""

    batch: GroupBatch
    report: StepReport
    step: int
    policy_version: str


@dataclass(frozen=True, slots=True)
class RecordedJob:
    """The state of a remote job."""

    job_id: str
    provider: str
    status: str
    detail: dict[str, Any]


@dataclass
class MemoryJournal:
    """Implements `types.Journal`; appending to a list is safe from any thread.

    Example:
        >>> journal = MemoryJournal()
        >>> journal.job("job-1", provider="openai", status="queued", detail={})
        >>> journal.jobs[0].status
        'queued'
    """

    completions: list[Completion] = field(default_factory=list)
    policies: list[RecordedPolicy] = field(default_factory=list)
    batches: list[RecordedBatch] = field(default_factory=list)
    jobs: list[RecordedJob] = field(default_factory=list)

    def completion(self, completion: Completion) -> None:
        """Keep one choice with its exact tokens."""
        self.completions.append(completion)

    def policy(self, policy: Policy, *, step: int, trainer: str) -> None:
        """Keep a version of the policy that is in force from now on."""
        self.policies.append(RecordedPolicy(policy, step, trainer))

    def batch(self, batch: GroupBatch, report: StepReport, *, step: int, policy_version: str) -> None:
        """Keep what a step learned from."""
        self.batches.append(RecordedBatch(batch, report, step, policy_version))

    def job(self, job_id: str, *, provider: str, status: str, detail: dict[str, Any]) -> None:
        """Keep the state of a remote job."""
        self.jobs.append(RecordedJob(job_id, provider, status, detail))
