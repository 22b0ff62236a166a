"""The world as a trainer sees it: examples, rollouts, groups, evaluations, checkpoints.

Everything that happens here goes through the store: rollouts are traced into the spool,
the store takes them in and aligns them, and a trainer gets groups as values.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tracetune.errors import InvalidInput, RolloutsFailed
from tracetune.grouping import Store
from tracetune.online.batches import Failures, RolloutRequest, RolloutWarning
from tracetune.online.checkpoints import Checkpoints
from tracetune.online.progress import ProgressDisplay
from tracetune.online.runner import RolloutRunner
from tracetune.redaction import redacted_repr
from tracetune.tracer.values import type_name
from tracetune.types import (
    Checkpoint,
    Evaluation,
    Example,
    GroupBatch,
    Grouping,
    Journal,
    Plan,
    Policy,
    Rollout,
    RolloutSet,
    StepReport,
)
from tracetune.types.teachers import teacher_of

if TYPE_CHECKING:
    from tracetune.online.teachers import Teachers

OnStep = Callable[[int, dict[str, float]], None]

EXPORTED = ("OPENAI_BASE_URL", "OPENAI_API_KEY")
"""The variables that `export_env` points at the policy."""


class OnlineEnvironment:
    """Implements `types.Environment` on a program, its examples and a store."""

    def __init__(
        self,
        *,
        plan: Plan,
        train: Sequence[Example],
        val: Sequence[Example],
        store: Store,
        journal: Journal,
        checkpoints: Checkpoints,
        resume_from: Path | None,
        runner: RolloutRunner,
        display: ProgressDisplay,
        on_step: OnStep | None,
        export_env: bool,
        teachers: Teachers | None = None,
    ) -> None:
        self.plan = plan
        self.journal: Journal = journal
        self.resume_from = resume_from
        self.reports: list[StepReport] = []
        self.evaluations: dict[int, Evaluation] = {}
        self.train = train
        self.val = val
        self._store = store
        self._checkpoints = checkpoints
        self._runner = runner
        self._display = display
        self._on_step = on_step
        self._export_env = export_env
        self._teachers = teachers
        self._any_success = False

    def examples(self, step: int) -> Sequence[Example]:
        """The training examples of a step: the same ones whenever they are asked for.

        Each pass over the training set has an order of its own, drawn from the plan's
        seed, so a run that is resumed goes on exactly where it stopped.
        """
        first = (step - 1) * self.plan.examples_per_step
        return [self._example_at(position) for position in range(first, first + self.plan.examples_per_step)]

    def rollouts(self, examples: Sequence[Example], n: int, policy: Policy, split: str, *, step: int) -> RolloutSet:
        """Run the program n times on each example under a policy, and score it.

        In the split "train" teachers make their shares of them.

        Raises:
            RolloutsFailed: if nothing has succeeded in this run so far, and every one of
                these crashed or could not be scored: the cause is the first error.
            NoCompletions: if a teacher's rollouts ask somebody else.
        """
        if self._export_env:
            os.environ.update(zip(EXPORTED, (policy.base_url, policy.api_key), strict=True))
        requests = [
            RolloutRequest(example, index, split, step, maker)
            for example in examples
            for index, maker in enumerate(self._makers(example, n, policy, split, step))
        ]
        with self._display.rollouts(split, step, len(requests)) as on_done:
            rollouts, failures = self._runner.run(requests, on_done)
        self._check(rollouts, failures, split, step)
        if self._teachers is not None:
            self._teachers.check(rollouts, step)
        return RolloutSet(self.plan.run, split, step, tuple(examples), tuple(rollouts))

    def groups(self, rollouts: RolloutSet, grouping: Grouping) -> GroupBatch:
        """Align the calls of those rollouts, by SQL."""
        ids = ", ".join(_literal(rollout.id) for rollout in rollouts.rollouts)
        return self._store.groups(grouping, where=f"rollout_id IN ({ids})" if ids else "false")

    def evaluate(self, policy: Policy, examples: Sequence[Example] | None = None, *, step: int) -> Evaluation:
        """Run the program once on each example, by default the validation set, with its own sampling.

        Raises:
            InvalidInput: if there are no examples.
        """
        examples = self.val if examples is None else examples
        if not examples:
            raise InvalidInput("there is nothing to evaluate on; give optimize(val=[…])")
        rollouts = self.rollouts(examples, 1, policy, "val", step=step)
        rewards = tuple(self._worth(rollout) for rollout in rollouts.rollouts)
        failed = sum(rollout.reward is None for rollout in rollouts.rollouts)
        evaluation = Evaluation(sum(rewards) / len(rewards), rewards, len(rewards), failed, policy.version)
        self.evaluations[step] = evaluation
        self._display.evaluation(step, evaluation)
        return evaluation

    def checkpoint(self, state: Checkpoint) -> None:
        """Keep a checkpoint: all of it or nothing."""
        self._checkpoints.keep(state)

    def report(self, report: StepReport, rollouts: RolloutSet, batch: GroupBatch) -> None:
        """Show and announce a finished step."""
        self.reports.append(report)
        figures = report.figures()
        own = [rollout for rollout in rollouts.rollouts if teacher_of(rollout.policy_version) is None]
        taught = [rollout for rollout in rollouts.rollouts if teacher_of(rollout.policy_version) is not None]
        figures["reward"] = sum(map(self._worth, own)) / len(own)
        if taught:
            figures["teacher_reward"] = sum(map(self._worth, taught)) / len(taught)
        figures["groups"] = len(batch)
        figures["failed"] = sum(rollout.status != "ok" for rollout in rollouts.rollouts)
        self._display.step(rollouts.step, figures)
        if self._on_step is not None:
            self._on_step(rollouts.step, figures)

    def notice(self, text: str) -> None:
        """Show a line of what goes on in a step that takes long."""
        self._display.notice(text)

    def _makers(self, example: Example, n: int, policy: Policy, split: str, step: int) -> list[Policy]:
        if self._teachers is None or split != "train":
            return [policy] * n
        return self._teachers.policies_of(example, n, policy, step=step)

    def _worth(self, rollout: Rollout) -> float:
        return self.plan.grouping.failure_reward if rollout.reward is None else rollout.reward

    def _example_at(self, position: int) -> Example:
        epoch, offset = divmod(position, len(self.train))
        order = list(range(len(self.train)))
        random.Random(f"{self.plan.seed}/{epoch}").shuffle(order)  # noqa: S311  an order, not a secret
        return self.train[order[offset]]

    def _check(self, rollouts: Sequence[Rollout], failures: Failures, split: str, step: int) -> None:
        # A policy that cannot yet write the asked form is no mistake of the program's: format errors don't count.
        crashed = sum(rollout.status in ("error", "timeout") for rollout in rollouts)
        self._any_success = self._any_success or any(rollout.reward is not None for rollout in rollouts)
        if not self._any_success and crashed == len(rollouts):
            first = _one_line(failures.first_program, failures.program_message)
            raise RolloutsFailed(
                f"all {crashed} rollouts of {split} step {step} failed, the first with {first}; run the program once "
                "by hand on one example"
            ) from failures.first_program
        if not self._any_success and failures.rewards and failures.rewards + failures.programs == len(rollouts):
            raise RolloutsFailed(
                f"none of the {failures.rewards} finished rollouts of {split} step {step} could be scored, the first: "
                f"{_one_line(failures.first_reward, failures.reward_message)}; call the reward function once by hand"
            ) from failures.first_reward
        if crashed:
            first = _one_line(failures.first_program, failures.program_message)
            self._warn(f"{split} step {step}: {crashed} of {len(rollouts)} rollouts failed", first)
        if failures.rewards:
            first = _one_line(failures.first_reward, failures.reward_message)
            self._warn(
                f"{split} step {step}: {failures.rewards} of {len(rollouts)} rollouts could not be scored and are left "
                "out",
                first,
            )

    def _warn(self, counted: str, first: str) -> None:
        warnings.warn(f"{counted}, the first with {first}", RolloutWarning, stacklevel=4)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _one_line(error: BaseException | None, message: str) -> str:
    return f"{type_name(error)}: {redacted_repr(' '.join(message.split()))}"[:300]
