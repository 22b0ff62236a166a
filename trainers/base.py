"""What all weight trainers have in common: the loop from rollouts to the next policy.

A weight trainer knows how to learn from one batch (`step`), how to keep what it knows
(`save`, `load`) and how to be asked (`endpoint`). The loop around that stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeVar

from tracetune.errors import NoCompletions, TrainerError
from tracetune.types import (
    Capabilities,
    Environment,
    GroupBatch,
    Likelihood,
    Plan,
    Policy,
    RolloutSet,
    Sampling,
    StepReport,
)
from tracetune.types.teachers import teacher_of

T = TypeVar("T")


class Endpoint(Protocol):
    """Where a policy answers while it learns.

    Attributes:
        sampling: in place of what a program asks for; None leaves it to the program.
    """

    sampling: Sampling | None

    @property
    def policy(self) -> Policy:
        """The policy in force: its address, and the version of its weights."""

    @property
    def completions_served(self) -> int:
        """How many choices it has given in its life."""

    def start(self) -> Any:
        """Begin to answer."""

    def stop(self) -> None:
        """Stop answering; what is under way is cancelled."""

    def publish(self, version: str) -> Any:
        """Stamp completions with a new version from now on."""

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run while nothing is decoded, so that weights may change."""


@dataclass(slots=True)
class FinishedStep:
    """A checkpoint: the trainer as it is after a step."""

    step: int
    trainer: WeightTrainer

    def save(self, folder: Path) -> None:
        """Write it into an empty folder."""
        self.trainer.save(folder)


class WeightTrainer(ABC):
    """A trainer that changes weights, step by step.

    It lives for one run. `fit` serves the policy for as long as it trains; whoever wants
    to ask it before or after opens the trainer around that, and closes it. `step` alone
    needs none of this.

    Example:
        >>> with trainer:  # doctest: +SKIP
        ...     trainer.open(env)
        ...     before = env.evaluate(trainer.policy, step=0)
        ...     after = env.evaluate(trainer.fit(env), step=env.plan.steps)

    Attributes:
        name: as its entry point calls it.
        steps_done: steps of its life, those before a resume included.
    """

    name: ClassVar[str]
    capabilities: Capabilities

    def __init__(self) -> None:
        self.steps_done = 0
        self._endpoint: Endpoint | None = None
        self._reached = False

    @abstractmethod
    def step(self, batch: GroupBatch) -> StepReport:
        """Learn from a batch of groups, and count the step in `steps_done`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write all that is needed to go on, as safetensors and JSON."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Go on where `save` was called; raises CheckpointError and changes nothing if it cannot."""

    @abstractmethod
    def endpoint(self, env: Environment, version: str) -> Endpoint:
        """A server of these weights, not yet started, that records its completions in the journal."""

    def likelihood(self, batch: GroupBatch) -> Likelihood | None:
        """How likely a batch is under the present weights; None where the trainer cannot tell."""
        return None

    def prepare(self, plan: Plan) -> None:  # noqa: B027  # optional: most trainers need not know the plan
        """Learn what was asked for, before anything is loaded or served."""

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
            if env.resume_from is None and self.steps_done:
                raise TrainerError(
                    f'this "{self.name}" trainer has made {self.steps_done} steps already; make a new one for a new run'
                )
            self.prepare(env.plan)
            if env.resume_from is not None:
                self.load(env.resume_from)
            endpoint = self.endpoint(env, self._version(env.plan.run))
            endpoint.start()
            self._endpoint = endpoint
            env.journal.policy(endpoint.policy, step=self.steps_done, trainer=self.name)
        return self.policy

    def close(self) -> None:
        """Stop serving the policy."""
        if self._endpoint is not None:
            self._endpoint.stop()
            self._endpoint = None

    def fit(self, env: Environment) -> Policy:
        """Train until the plan is done, validating before, after, and in between as it says.

        A trainer that was opened before goes on serving the policy afterwards. An
        interrupt leaves a checkpoint of the last finished step behind.

        Raises:
            NoCompletions: if the first step that makes calls reaches the endpoint with none.
        """
        if self._endpoint is not None:
            return self._fit(env)
        self.open(env)
        try:
            return self._fit(env)
        finally:
            self.close()

    def learn(self, batch: GroupBatch, run: str) -> StepReport:
        """One step; where the policy is served, while nothing is sampled, and the new weights get their version."""
        endpoint = self._endpoint
        if endpoint is None:
            return self.step(batch)

        def step() -> StepReport:
            report = self.step(batch)
            if report.used:
                endpoint.publish(self._version(run))
            return report

        return endpoint.exclusively(step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fit(self, env: Environment) -> Policy:
        self._validate(env)
        kept = self.steps_done
        try:
            for step in range(self.steps_done + 1, env.plan.steps + 1):
                rollouts, batch, report = self._learn_from_rollouts(env, step)
                env.checkpoint(FinishedStep(self.steps_done, self))
                kept = self.steps_done
                env.report(report, rollouts, batch)
                if step == env.plan.steps or (env.plan.validate_every and step % env.plan.validate_every == 0):
                    self._validate(env)
        except KeyboardInterrupt:
            if self.steps_done > kept:
                env.checkpoint(FinishedStep(self.steps_done, self))
            raise
        return self.policy

    def _validate(self, env: Environment) -> None:
        if env.val:
            env.evaluate(self.policy, step=self.steps_done)

    def _learn_from_rollouts(self, env: Environment, step: int) -> tuple[RolloutSet, GroupBatch, StepReport]:
        """One step: sample, group, learn, and put the new weights in force."""
        endpoint, plan = self._opened(), env.plan
        policy = endpoint.policy
        served = endpoint.completions_served
        endpoint.sampling = plan.sampling
        try:
            rollouts = env.rollouts(env.examples(step), plan.rollouts, policy, "train", step=step)
        finally:
            # Whoever evaluates the policy next gets the program's own sampling.
            endpoint.sampling = None
        if not self._reached:
            self._reached = reaches_endpoint(rollouts, endpoint.completions_served - served)
        batch = env.groups(rollouts, plan.grouping)
        report = self.learn(batch, plan.run)
        env.journal.batch(batch, report, step=step, policy_version=policy.version)
        if report.used:
            env.journal.policy(endpoint.policy, step=step, trainer=self.name)
        return rollouts, batch, report

    def _version(self, run: str) -> str:
        return f"{run}@{self.steps_done}"

    def _opened(self) -> Endpoint:
        if self._endpoint is None:
            raise TrainerError(f'the trainer "{self.name}" serves no policy; open it first, or fit it.')
        return self._endpoint


def reaches_endpoint(rollouts: RolloutSet, served: int) -> bool:
    """Whether the program asks the policy; False while it has asked nobody.

    Raises:
        NoCompletions: if it asks somebody else.
    """
    calls = sum(len(rollout.calls) for rollout in rollouts.rollouts if teacher_of(rollout.policy_version) is None)
    if calls and not served:
        raise NoCompletions(
            f"step {rollouts.step} made {calls} calls and none reached the policy endpoint; build the client inside "
            'the program, or map its model with models={"gpt-4o-mini": "policy"}.'
        )
    return served > 0
