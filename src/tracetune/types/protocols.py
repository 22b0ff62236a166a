"""What the learning side and the rest of the house ask of each other.

A trainer turns groups into the next policy. It sees the world only through an
`Environment`, which the online loop implements, and records only through its `Journal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from tracetune.types.completions import Completion, Sampling
from tracetune.types.examples import Evaluation, Example
from tracetune.types.grouping import Grouping
from tracetune.types.groups import GroupBatch
from tracetune.types.policies import Policy, Upstream
from tracetune.types.reports import StepReport
from tracetune.types.rollouts import RolloutSet
from tracetune.types.teachers import Teacher

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a trainer needs and what it changes.

    Attributes:
        exact_tokens: it cannot learn from members whose tokens are unknown.
        on_policy: it needs fresh rollouts of the policy it is changing.
        weights: it changes weights.
        prompts: it changes prompt texts.
    """

    exact_tokens: bool = False
    on_policy: bool = False
    weights: bool = False
    prompts: bool = False


@runtime_checkable
class Journal(Protocol):
    """Where a trainer writes down what happened; the face hands it one that writes to the spool."""

    def completion(self, completion: Completion) -> None:
        """Record one choice with its exact tokens."""

    def policy(self, policy: Policy, *, step: int, trainer: str) -> None:
        """Record that a version of the policy is in force from now on."""

    def batch(self, batch: GroupBatch, report: StepReport, *, step: int, policy_version: str) -> None:
        """Record what a step learned from, and what came of it."""

    def job(self, job_id: str, *, provider: str, status: str, detail: dict[str, Any]) -> None:
        """Record the state of a remote job, before waiting for it."""


@runtime_checkable
class Checkpoint(Protocol):
    """All that a trainer needs to go on after `step`; the environment keeps it atomically."""

    @property
    def step(self) -> int:
        """The step that it is kept under."""

    def save(self, folder: Path) -> None:
        """Write it into an empty folder, as safetensors and JSON."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the online loop was asked for.

    Attributes:
        run: the name that everything is recorded under.
        steps: how many training steps the run has altogether.
        examples_per_step: how many examples a step draws.
        rollouts: how many times each of them is run in a step.
        grouping: how their calls are aligned.
        sampling: what training rollouts are sampled with, over whatever the program asks.
        validate_every: steps between two validations; None validates before and after only.
        models: names that programs have hard-coded, mapped to the policy's.
        upstream: where requests for other models go; None refuses them.
        seed: of the order of examples, and of whatever a trainer draws.
        teachers: who makes a share of the training rollouts in place of the policy.
    """

    run: str
    steps: int
    examples_per_step: int
    rollouts: int
    grouping: Grouping = field(default_factory=Grouping)
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, top_p=1.0))
    validate_every: int | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    upstream: Upstream | None = None
    seed: int = 0
    teachers: tuple[Teacher, ...] = ()


class Environment(Protocol):
    """What a trainer may do with the world.

    Attributes:
        plan: what the caller of the online loop asked for.
        train: all training examples.
        val: all validation examples; may be empty.
        journal: where to record.
        resume_from: the folder of the last checkpoint, when the run goes on.
    """

    plan: Plan
    train: Sequence[Example]
    val: Sequence[Example]
    journal: Journal
    resume_from: Path | None

    def examples(self, step: int) -> Sequence[Example]:
        """The training examples of a step: the same ones whenever they are asked for."""

    def rollouts(self, examples: Sequence[Example], n: int, policy: Policy, split: str, *, step: int) -> RolloutSet:
        """Run the program n times on each example under a policy, and score it.

        In the split "train" the plan's teachers make their shares of them.
        """

    def groups(self, rollouts: RolloutSet, grouping: Grouping) -> GroupBatch:
        """Align the calls of those rollouts."""

    def evaluate(self, policy: Policy, examples: Sequence[Example] | None = None, *, step: int) -> Evaluation:
        """Run the program once on each example, by default the validation set, with its own sampling."""

    def checkpoint(self, state: Checkpoint) -> None:
        """Keep a checkpoint: all of it or nothing."""

    def report(self, report: StepReport, rollouts: RolloutSet, batch: GroupBatch) -> None:
        """Show and announce a finished step."""

    def notice(self, text: str) -> None:
        """Show a line of what goes on in a step that takes long."""


@runtime_checkable
class Trainer(Protocol):
    """Turns groups into the next policy."""

    capabilities: Capabilities

    def fit(self, env: Environment) -> Policy:
        """Train until the plan is done; gives the policy in force at the end.

        Where there are validation examples, it has the environment evaluate the policy
        before the first step and after the last.
        """


@runtime_checkable
class Collective(Protocol):
    """A trainer that several processes may run at once, of which one leads."""

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives: the leading process does it, the others take part in its steps meanwhile."""
