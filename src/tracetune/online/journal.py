"""The journal that the online loop hands to trainers: everything goes to the spool as log records."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from tracetune.tracer import Spool, names
from tracetune.types import Completion, GroupBatch, Policy, StepReport


class SpoolJournal:
    """Writes what a trainer does into a spool, under one run.

    Safe to call from the endpoint's threads: a record is one write.
    """

    def __init__(self, spool: Spool, run: str) -> None:
        self._spool = spool
        self._run = run

    def completion(self, completion: Completion) -> None:
        """Record one choice with its exact tokens."""
        logprobs = completion.completion_logprobs
        body = {
            "response_id": completion.response_id,
            "choice": completion.choice,
            "model": completion.model,
            "policy_version": completion.policy_version,
            "prompt_token_ids": list(completion.prompt_token_ids),
            "completion_token_ids": list(completion.completion_token_ids),
            "completion_logprobs": None if logprobs is None else list(logprobs),
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "sampling": completion.sampling.model_dump(),
            "call_id": completion.call_id,
            "module": completion.module,
            "started_at": completion.started_at,
            "ended_at": completion.ended_at,
        }
        self._write(names.RECORD_COMPLETION, body)

    def policy(self, policy: Policy, *, step: int, trainer: str) -> None:
        """Record that a version of the policy is in force from now on."""
        body = {
            "version": policy.version,
            "step": step,
            "trainer": trainer,
            "model": policy.model,
            "prompts": dict(policy.prompts),
        }
        self._write(names.RECORD_POLICY, body, step=step)

    def batch(self, batch: GroupBatch, report: StepReport, *, step: int, policy_version: str) -> None:
        """Record what a step learned from, and what came of it."""
        members = [
            {
                "group_id": group.id,
                "slot": slot,
                "call_id": member.call_id,
                "rollout_id": member.rollout_id,
                "reward": member.reward,
                "advantage": member.advantage,
            }
            for group in batch.groups
            for slot, member in enumerate(group.members)
        ]
        body = {
            "step": step,
            "policy_version": policy_version,
            "members": members,
            "left_out": Counter(f"{item.kind}:{item.reason}" for item in batch.left_out),
            "report": asdict(report),
        }
        self._write(names.RECORD_BATCH, body, step=step)

    def job(self, job_id: str, *, provider: str, status: str, detail: dict[str, Any]) -> None:
        """Record the state of a remote job, before waiting for it."""
        self._write(names.RECORD_JOB, {"job_id": job_id, "provider": provider, "status": status, "detail": detail})

    def supersede(self, from_step: int) -> None:
        """Record that the run's rollouts from a step on never reached a checkpoint."""
        self._write(names.RECORD_SUPERSEDE, {"run": self._run, "from_step": from_step})

    def _write(self, event: str, body: dict[str, Any], *, step: int | None = None) -> None:
        attributes: dict[str, Any] = {names.RUN: self._run}
        if step is not None:
            attributes[names.STEP] = step
        self._spool.write_record(event, body, attributes=attributes)
