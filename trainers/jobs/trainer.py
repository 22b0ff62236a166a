"""The rounds of a trainer whose learning is done elsewhere, by one fine-tuning job a step.

Programs keep calling the policy at one address; what answers there is the service's
model, and after each job the model that came of it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from tracetune.errors import InvalidInput, TrainerError
from tracetune.redaction import redacted_text
from tracetune.rows import Rows, preference_rows, supervised_rows
from tracetune.trainers.base import reaches_endpoint
from tracetune.trainers.endpoint import ProxyEndpoint
from tracetune.trainers.jobs.cost import Estimate, confirm, price_of, tokens_of
from tracetune.trainers.jobs.patience import Patience
from tracetune.trainers.jobs.service import Job, JobService
from tracetune.trainers.jobs.state import Pending, State
from tracetune.trainers.jobs.submission import JobSettings, Submission
from tracetune.types import Capabilities, Environment, GroupBatch, Policy, RolloutSet, StepReport, Upstream

Method = Literal["supervised", "dpo"]


class JobTrainer(ABC):
    """A trainer that learns by the jobs of a fine-tuning service, one a step.

    Args:
        model: what the first job trains; also what answers until it is done.
        upstream: where the service, and its models, answer.
        method: "supervised" imitates what did well, "dpo" prefers it to what did not.
        select: which members are imitated: "best", "above" or "weighted"; see `tracetune.rows.supervised_rows`.
        threshold: of the advantage, for "above".
        margin: by how much rewards must differ, at least, for a pair of "dpo".
        epochs: passes of a job over its rows.
        hyperparameters: others, as the service calls them; what is None is left to it.
        suffix: in the names of the models, up to 64 characters.
        price_per_million: US dollars for a million trained tokens, for the estimate.
        yes: go ahead without asking whether to upload and start a job.
        poll_interval: seconds between two looks at a job.
        patience: seconds that the service may be unavailable at a stretch.
        time_limit: seconds that a job may take before this process stops waiting for it.

    Attributes:
        name: as its entry point calls it.
    """

    name: ClassVar[str]
    capabilities = Capabilities(weights=True)

    def __init__(
        self,
        model: str,
        *,
        upstream: Upstream,
        method: Method,
        select: Literal["best", "above", "weighted"],
        threshold: float,
        margin: float,
        epochs: int,
        hyperparameters: Mapping[str, Any],
        suffix: str | None,
        price_per_million: float | None,
        yes: bool,
        poll_interval: float,
        patience: float,
        time_limit: float | None,
    ) -> None:
        if epochs < 1:
            raise InvalidInput(f"epochs must be at least 1, not {epochs}")
        if suffix is not None and not 0 < len(suffix) <= 64:
            raise InvalidInput(f"suffix has 1 to 64 characters, not {len(suffix)}")
        for setting, seconds in (("poll_interval", poll_interval), ("patience", patience), ("time_limit", time_limit)):
            if seconds is not None and seconds <= 0:
                raise InvalidInput(f"{setting} must be more than 0 seconds, not {seconds:g}")
        self._upstream = upstream
        self._method = method
        self._select = select
        self._threshold = threshold
        self._margin = margin
        self._epochs = epochs
        self._price_per_million = price_per_million
        self._yes = yes
        self._patience = Patience(patience, pause=min(1.0, poll_interval))
        self._job_settings = JobSettings(
            method, {"n_epochs": epochs, **hyperparameters}, suffix, poll_interval, time_limit
        )
        # Kept in checkpoints, so an address goes there without the password that may be in it.
        self._settings = {"model": model, "base_url": redacted_text(upstream.base_url), "method": method}
        self._state = State(self._settings, model)
        self._endpoint: ProxyEndpoint | None = None
        self._reached = False
        self._rows(GroupBatch([]))  # settings that no rows can be made with are refused now

    @abstractmethod
    def _service(self) -> JobService:
        """The service, ready to be asked."""

    @property
    def policy(self) -> Policy:
        """The policy in force.

        Raises:
            TrainerError: if the trainer is not open.
        """
        return self._opened().policy

    def open(self, env: Environment) -> Policy:
        """Load the last checkpoint, if the run goes on, and serve the policy until `close`.

        Raises:
            TrainerError: if the run is a new one and the trainer is not.
            CheckpointError: if the checkpoint is not this trainer's.
        """
        if self._endpoint is None:
            if env.resume_from is not None:
                self._state = State.load(env.resume_from, self._settings)
            elif self._state.step:
                raise TrainerError(
                    f'this "{self.name}" trainer has begun {self._state.step} steps; make a new one for a new run'
                )
            plan = env.plan
            endpoint = ProxyEndpoint(
                self._upstream,
                upstream_model=self._state.model,
                version=self._version(env),
                journal=env.journal,
                models=plan.models,
                forward=plan.upstream,
            )
            endpoint.start()
            self._endpoint = endpoint
            env.journal.policy(endpoint.policy, step=self._state.trained, trainer=self.name)
        return self.policy

    def close(self) -> None:
        """Stop serving the policy; a job that is under way goes on."""
        if self._endpoint is not None:
            self._endpoint.stop()
            self._endpoint = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fit(self, env: Environment) -> Policy:
        """Train until the plan is done, validating before, after, and in between as it says.

        Raises:
            NoCompletions: if the first step that makes calls reaches the endpoint with none.
            TrainerError: if a job fails or is cancelled, is not confirmed, or takes too
                long. The run can be resumed: a job under way is picked up, one that
                ended without a model is submitted anew, from the same rows.
        """
        if self._endpoint is not None:
            return self._fit(env)
        self.open(env)
        try:
            return self._fit(env)
        finally:
            self.close()

    def _fit(self, env: Environment) -> Policy:
        plan = env.plan
        if (pending := self._state.pending) is not None:
            # The process before this one had the groups; they are made again of the same rollouts.
            rollouts = RolloutSet(plan.run, "train", pending.step, env.examples(pending.step), pending.rollouts)
            self._finish(env, rollouts, env.groups(rollouts, plan.grouping))
        else:
            self._validate(env)
        while self._state.trained < plan.steps:
            step = self._state.trained + 1
            rollouts, batch = self._sample(env, step)
            self._begin(env, rollouts, batch)
            self._finish(env, rollouts, batch)
        return self.policy

    def _validate(self, env: Environment) -> None:
        if env.val:
            env.evaluate(self.policy, step=self._state.trained)

    def _sample(self, env: Environment, step: int) -> tuple[RolloutSet, GroupBatch]:
        endpoint, plan = self._opened(), env.plan
        served = endpoint.completions_served
        endpoint.sampling = plan.sampling
        try:
            rollouts = env.rollouts(env.examples(step), plan.rollouts, endpoint.policy, "train", step=step)
        finally:
            # Whoever evaluates the policy next gets the program's own sampling.
            endpoint.sampling = None
        if not self._reached:
            self._reached = reaches_endpoint(rollouts, endpoint.completions_served - served)
        return rollouts, env.groups(rollouts, plan.grouping)

    def _begin(self, env: Environment, rollouts: RolloutSet, batch: GroupBatch) -> None:
        """Keep the rows of a step, before anything is said to the service."""
        rows = self._rows(batch)
        pending = Pending(
            step=rollouts.step,
            key=self._state.key(rollouts.step),
            content=rows.jsonl().encode(),
            since=time.time(),
            rows=len(rows),
            used=batch.n_members - sum(rows.skipped.values()),
            skipped=dict(rows.skipped),
            policy_version=self.policy.version,
            rollouts=rollouts.rollouts,
        )
        self._keep(env, pending)

    def _finish(self, env: Environment, rollouts: RolloutSet, batch: GroupBatch) -> None:
        """Take the pending step to its end: a job and its model, or nothing where there are no rows."""
        began = time.monotonic()
        pending = self._state.pending
        assert pending is not None
        loss, tokens = None, 0
        if pending.rows:
            job, loss = self._job(env, pending)
            tokens = job.tokens if job.tokens is not None else tokens_of(pending.content) * self._epochs
            assert job.model is not None
            self._state = self._state.finished(job.model)
            self._opened().publish(self._version(env), upstream_model=job.model)
        else:
            self._state = self._state.finished(self._state.model)
        report = StepReport(
            step=pending.step,
            loss=0.0 if loss is None else loss,
            kl=None,
            clip_fraction=0.0,
            entropy=None,
            grad_norm=0.0,
            tokens=tokens,
            seconds=time.monotonic() - began,
            used=pending.used,
            skipped=pending.skipped,
        )
        env.journal.batch(batch, report, step=pending.step, policy_version=pending.policy_version)
        if pending.rows:
            env.journal.policy(self.policy, step=pending.step, trainer=self.name)
        env.checkpoint(self._state)
        env.report(report, rollouts, batch)
        plan = env.plan
        if pending.step == plan.steps or (plan.validate_every and pending.step % plan.validate_every == 0):
            self._validate(env)

    def _job(self, env: Environment, pending: Pending) -> tuple[Job, float | None]:
        """The pending job once it has succeeded, and its last training loss."""
        submission = Submission(
            self._service(),
            self._job_settings,
            self._patience,
            keep=lambda known: self._keep(env, known),
            say=env.notice,
        )
        known, pending = pending, submission.found(pending)
        if pending.job_id is None:
            self._confirm(pending, env.plan.steps)
        if pending != known:  # the process before this one did not come to write it down
            self._keep(env, pending)
        pending = submission.submitted(pending, model=self._state.model, seed=env.plan.seed)
        assert pending.job_id is not None
        job, loss = submission.ended(pending.job_id)
        self._record(env, pending, job.status, {"model": job.model, "error": job.error, "tokens": job.tokens})
        if job.status != "succeeded" or job.model is None:
            self._state = self._state.failed()
            env.checkpoint(self._state)
            raise TrainerError(
                f"job {job.id} of step {pending.step} has {job.status} at {self._upstream.base_url}: "
                f"{job.error or 'no reason was given'}; resume the run to submit its rows again"
            )
        return job, loss

    def _confirm(self, pending: Pending, steps: int) -> None:
        if self._yes:
            return
        model = self._state.model
        price = self._price_per_million if self._price_per_million is not None else price_of(model)
        estimate = Estimate(pending.rows, tokens_of(pending.content), self._epochs, price)
        confirm(f"job {pending.step} of {steps}, to train {model} at {self._upstream.base_url}: {estimate}")

    def _keep(self, env: Environment, pending: Pending) -> None:
        """Write down what is known of a job, in the store and in a checkpoint."""
        known = "submitted" if pending.job_id else "uploaded" if pending.file_id else "intended"
        if pending.rows:
            self._record(env, pending, known)
        self._state = replace(self._state, pending=pending)
        env.checkpoint(self._state)

    def _record(self, env: Environment, pending: Pending, status: str, more: Mapping[str, Any] = {}) -> None:
        detail = {
            "key": pending.key,
            "step": pending.step,
            "base_url": self._upstream.base_url,
            "base_model": self._state.model,
            "method": self._method,
            "file_name": pending.file_name,
            "file_id": pending.file_id,
            "rows": pending.rows,
            "sha256": pending.sha256,
        }
        env.journal.job(pending.job_id or pending.key, provider=self.name, status=status, detail={**detail, **more})

    def _rows(self, batch: GroupBatch) -> Rows:
        if self._method == "dpo":
            return preference_rows(batch, margin=self._margin)
        if self._method != "supervised":
            raise InvalidInput(f'method is "supervised" or "dpo", not {self._method!r}')
        return supervised_rows(batch, select=self._select, threshold=self._threshold)

    def _version(self, env: Environment) -> str:
        return f"{env.plan.run}@{self._state.trained}"

    def _opened(self) -> ProxyEndpoint:
        if self._endpoint is None:
            raise TrainerError(f'the trainer "{self.name}" serves no policy; open it first, or fit it.')
        return self._endpoint
