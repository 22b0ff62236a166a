"""Training on stored groups, step by step: no program is run, unless one is given to be measured.

The groups are read once, and the steps follow from them and the seed: the same store, the
same arguments and the same seed give the same weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracetune.errors import InvalidInput, StoreNotFound, TrainerError
from tracetune.grouping import Store
from tracetune.offline.batches import batches_of, stored_groups
from tracetune.offline.display import StepDisplay
from tracetune.offline.stored import StoredEnvironment
from tracetune.online.checkpoints import Checkpoints
from tracetune.online.environment import OnlineEnvironment, OnStep
from tracetune.online.journal import SpoolJournal
from tracetune.online.progress import ProgressDisplay
from tracetune.online.runner import Reward, RolloutRunner
from tracetune.online.runs import taken_run
from tracetune.recording import record
from tracetune.trainers import FinishedStep, WeightTrainer, make_trainer
from tracetune.types import (
    Collective,
    Evaluation,
    Example,
    GroupBatch,
    Grouping,
    Likelihood,
    Plan,
    RolloutSet,
    StepReport,
    Trainer,
)

# Trainers that weigh what another policy sampled by its importance, which is what they are given here.
_WEIGHING = ("local", "tinker", "trl")

# A checkpoint costs about a step of a small model.
_STEPS_A_CHECKPOINT = 10


@dataclass(frozen=True, slots=True)
class OfflineResult:
    """What came of a training on stored groups.

    Attributes:
        run: the name that its steps are recorded under.
        store: the DuckDB file.
        grouping: how the calls were aligned.
        before: how likely the held-out slice was before the first step of this call; None
            where nothing was held out or the trainer cannot tell.
        after: how likely it is now.
        rollouts_before: what the program earned with the policy before; None without a program.
        rollouts_after: what it earns now.
        reports: one for each step of this call.
        checkpoint: the folder of the last checkpoint, with the adapter's weights in it.
    """

    run: str
    store: Path
    grouping: Grouping
    before: Likelihood | None
    after: Likelihood | None
    rollouts_before: Evaluation | None
    rollouts_after: Evaluation | None
    reports: tuple[StepReport, ...]
    checkpoint: Path | None


def train(
    store: str | os.PathLike[str],
    trainer: Trainer | str = "local",
    *,
    model: str | os.PathLike[str] | None = None,
    where: str | None = None,
    grouping: Grouping | None = None,
    members_per_step: int = 64,
    passes: int = 1,
    held_out: float = 0.1,
    program: Callable[..., Any] | None = None,
    val: Iterable[Example | Mapping[str, Any]] = (),
    reward: Reward | None = None,
    run: str | None = None,
    seed: int = 0,
    resume: bool = False,
    wait: float = 600.0,
    progress: bool = True,
    on_step: OnStep | None = None,
    **settings: Any,
) -> OfflineResult:
    """Train on what a store holds, without running a program.

    Calls that another policy sampled are learned from with truncated importance weights:
    how likely a token is now, against when it was sampled. Where only their text is known,
    it is tokenised by the policy's template, and the model that the training starts from
    stands in for whoever sampled it; a warning says so.

    Args:
        store: the DuckDB file.
        trainer: a trainer, or the name of an installed one. One that learns by jobs gets all
            groups in one job.
        model: what a trainer that is given by name starts from.
        where: a condition in SQL over the columns of `calls`.
        grouping: how calls are aligned; by default by example, or, where no example was
            answered twice, by module and invocation with advantages over the whole batch.
        members_per_step: how many calls a step learns from; whole groups, so sometimes more.
        passes: how often each group is learned from.
        held_out: the share of examples, by a hash of their ids, that is not trained on but
            measured before and after: the log-likelihood of good completions and of bad ones.
        program: run on `val` before and after, to see what it earns with the policy.
        val: the examples that the program is run on.
        reward: what its outputs are worth.
        run: the name to record the steps under; by default the next free one of run-1, run-2, …
        seed: of the order of groups, and of a trainer that is given by name.
        resume: go on from the last checkpoint of `run`.
        wait: seconds to wait for another process that holds the store, whenever one does; a
            training does not end because somebody looks into its store.
        progress: show a progress display on standard error.
        on_step: called as `on_step(step, figures)` after each step, for trackers.
        settings: of a trainer that is given by name. For `local`, `trl` and
            `tinker`, `importance="token"` is the default here.

    Raises:
        StoreNotFound: if there is no store.
        InvalidInput: if nothing can be trained on, or an argument makes no sense.
        TrainerError: if the trainer needs fresh rollouts, or changes no weights.
        CheckpointError: if there is nothing to resume.

    Example:
        >>> result = tt.train("logs.duckdb", model="…", where="run = 'prod-2026-11'")  # doctest: +SKIP
        >>> result.after.good - result.before.good  # doctest: +SKIP
        0.31
    """
    path = Path(store)
    if not path.exists():
        raise StoreNotFound(f"there is no store {path}; import logs into it first, or check the path")
    for name, number in (("members_per_step", members_per_step), ("passes", passes)):
        if number < 1:
            raise InvalidInput(f"{name} must be at least 1, not {number}")
    if not 0.0 <= held_out < 1.0:
        raise InvalidInput(f"held_out is a share of the examples from 0 to below 1, not {held_out}")
    if program is not None and reward is None:
        raise InvalidInput("a program to measure needs a reward to measure it by; give reward=…")
    examples = [Example.of(example) for example in val]
    if (program is None) != (not examples):
        raise InvalidInput(
            "to see what a program earns takes the program, its examples and its reward: program, val, reward"
        )
    learner = _learner(trainer, model, seed, settings)

    def train_here() -> OfflineResult:
        database = Store(path, wait=wait)
        groups = stored_groups(database, where, grouping, held_out)
        if isinstance(learner, WeightTrainer):
            batches = batches_of(groups.train, members=members_per_step, passes=passes, seed=seed)
        else:  # a job learns from all of it
            batches = [groups.train] * passes
        with ExitStack() as stack:
            name = stack.enter_context(taken_run(run, path, database, resume=resume))
            checkpoints = Checkpoints(path, name)
            plan = Plan(
                run=name, steps=len(batches), examples_per_step=1, rollouts=1, grouping=groups.grouping, seed=seed
            )
            recording = stack.enter_context(record(path, run=name))
            journal = SpoolJournal(recording.spool, name)
            display = stack.enter_context(
                StepDisplay(name, len(batches), first=checkpoints.latest_step(), shown=progress)
            )
            display.groups(groups)
            measuring = None
            if program is not None and reward is not None:
                runner = RolloutRunner(program, reward, max_concurrency=16, timeout=120.0)
                stack.callback(runner.close)
                measuring = OnlineEnvironment(
                    plan=plan,
                    train=(),
                    val=examples,
                    store=database,
                    journal=journal,
                    checkpoints=checkpoints,
                    resume_from=checkpoints.latest(),
                    runner=runner,
                    display=ProgressDisplay(name, len(batches), shown=False),
                    on_step=None,
                    export_env=False,
                )
            environment = StoredEnvironment(
                plan,
                batches,
                journal=journal,
                checkpoints=checkpoints,
                display=display,
                on_step=on_step,
                program=measuring,
            )
            before = after = None
            if isinstance(learner, WeightTrainer):
                before, after = _by_steps(learner, environment, batches, groups.held_out, display)
            else:
                learner.fit(environment)
        database.ingest()
        earned = environment.evaluations
        return OfflineResult(
            run=name,
            store=path,
            grouping=groups.grouping,
            before=before,
            after=after,
            rollouts_before=earned[0] if earned else None,
            rollouts_after=earned[-1] if earned else None,
            reports=tuple(environment.reports),
            checkpoint=checkpoints.latest(),
        )

    # Of several processes that train together, one reads the store, and the others learn with it.
    return learner.together(train_here) if isinstance(learner, Collective) else train_here()


def _by_steps(
    learner: WeightTrainer,
    env: StoredEnvironment,
    batches: Sequence[GroupBatch],
    held_out: GroupBatch,
    display: StepDisplay,
) -> tuple[Likelihood | None, Likelihood | None]:
    """Make the steps that are left; gives how likely the held-out slice was before them, and is after."""

    def measured() -> Likelihood | None:
        likelihood = learner.likelihood(held_out) if held_out.groups else None
        display.measured(learner.steps_done, likelihood, None)
        if env.val:
            env.evaluate(learner.policy, step=learner.steps_done)
        return likelihood

    with learner:
        if env.val:  # only a program needs an address
            learner.open(env)
        else:
            learner.prepare(env.plan)
            if env.resume_from is not None:
                learner.load(env.resume_from)
        run = env.plan.run
        before = measured()
        for batch in batches[learner.steps_done :]:
            version = f"{run}@{learner.steps_done}"
            report = learner.learn(batch, run)
            env.journal.batch(batch, report, step=report.step, policy_version=version)
            if report.step % _STEPS_A_CHECKPOINT == 0 or report.step == len(batches):
                env.checkpoint(FinishedStep(report.step, learner))
            env.report(report, RolloutSet(run, "train", report.step, (), ()), batch)
        return before, measured()


def _learner(
    trainer: Trainer | str, model: str | os.PathLike[str] | None, seed: int, settings: dict[str, Any]
) -> Trainer:
    if isinstance(trainer, str):
        if trainer in _WEIGHING:
            settings = {"importance": "token", "seed": seed, **settings}
        trainer = make_trainer(trainer, model=model, **settings)
    elif settings:
        raise InvalidInput(f"{', '.join(settings)}: the trainer is made already; give its settings to it")
    if not trainer.capabilities.weights or trainer.capabilities.on_policy:
        raise TrainerError(
            f"{type(trainer).__name__} cannot learn from what is stored: it "
            + ("needs rollouts of the policy as it is" if trainer.capabilities.weights else "changes no weights")
            + "; use optimize"
        )
    return trainer
