"""The world of a trainer that learns from what is stored: its steps are given, and nothing is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tracetune.offline.display import StepDisplay
from tracetune.online.checkpoints import Checkpoints
from tracetune.online.environment import OnlineEnvironment, OnStep
from tracetune.types import (
    Checkpoint,
    Evaluation,
    Example,
    GroupBatch,
    Grouping,
    Journal,
    Plan,
    Policy,
    RolloutSet,
    StepReport,
)


class StoredEnvironment:
    """Implements `types.Environment` on the batches of a store.

    Args:
        plan: with a step for each batch.
        batches: what each step learns from.
        journal: where to record.
        checkpoints: where to keep them.
        display: shows what goes on.
        on_step: called after each step.
        program: the world in which the program is run; None where there is none.

    Attributes:
        reports: of the steps that have been made.
        evaluations: in their order.
    """

    def __init__(
        self,
        plan: Plan,
        batches: Sequence[GroupBatch],
        *,
        journal: Journal,
        checkpoints: Checkpoints,
        display: StepDisplay,
        on_step: OnStep | None,
        program: OnlineEnvironment | None,
    ) -> None:
        self.plan = plan
        self.journal = journal
        self.train: Sequence[Example] = ()
        self.val: Sequence[Example] = () if program is None else program.val
        self.resume_from: Path | None = checkpoints.latest()
        self.reports: list[StepReport] = []
        self.evaluations: list[Evaluation] = []
        self._batches = batches
        self._checkpoints = checkpoints
        self._display = display
        self._on_step = on_step
        self._program = program

    def examples(self, step: int) -> Sequence[Example]:
        """None: what there is to learn from has been sampled."""
        return ()

    def rollouts(self, examples: Sequence[Example], n: int, policy: Policy, split: str, *, step: int) -> RolloutSet:
        """None of its own; `groups` gives what the step learns from."""
        return RolloutSet(self.plan.run, split, step, (), ())

    def groups(self, rollouts: RolloutSet, grouping: Grouping) -> GroupBatch:
        """The batch of the step."""
        return self._batches[rollouts.step - 1]

    def evaluate(self, policy: Policy, examples: Sequence[Example] | None = None, *, step: int) -> Evaluation:
        """What the program earns."""
        assert self._program is not None  # there are no validation examples without one
        evaluation = self._program.evaluate(policy, examples, step=step)
        self.evaluations.append(evaluation)
        self._display.measured(step, None, evaluation)
        return evaluation

    def checkpoint(self, state: Checkpoint) -> None:
        """Keep a checkpoint: all of it or nothing."""
        self._checkpoints.keep(state)

    def report(self, report: StepReport, rollouts: RolloutSet, batch: GroupBatch) -> None:
        """Show and announce a finished step."""
        self.reports.append(report)
        self._display.step(report)
        if self._on_step is not None:
            self._on_step(report.step, report.figures())

    def notice(self, text: str) -> None:
        """Show a line of what goes on in a step that takes long."""
        self._display.notice(text)
