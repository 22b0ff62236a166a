"""The online loop: run a program, score it, train what it calls, and run it again.

`optimize` puts the parts together: a recording, a store, an environment for the
trainer, checkpoints and a display. What a step consists of is the trainer's to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tracetune.errors import InvalidInput
from tracetune.grouping import Store
from tracetune.online.checkpoints import Checkpoints
from tracetune.online.environment import EXPORTED, OnlineEnvironment, OnStep
from tracetune.online.journal import SpoolJournal
from tracetune.online.processes import importable_name
from tracetune.online.progress import ProgressDisplay
from tracetune.online.runner import Reward, RolloutRunner
from tracetune.online.runs import taken_run
from tracetune.recording import record
from tracetune.trainers import make_trainer
from tracetune.types import (
    Collective,
    Evaluation,
    Example,
    Grouping,
    Plan,
    Policy,
    Sampling,
    StepReport,
    Teacher,
    Trainer,
    Upstream,
)
from tracetune.types.teachers import checked_teachers

if TYPE_CHECKING:
    from tracetune.online.teachers import Teachers

OPENAI_BASE_URL = "https://api.openai.com/v1"
"""Where OpenAI's clients go when nothing tells them otherwise."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run.

    Attributes:
        run: the name it is recorded under.
        store: the DuckDB file.
        policy: the policy at the end; a local endpoint has stopped by then.
        before: validation before the first step of this call; None without a validation set.
        after: validation after the last step.
        validations: all of this call's validations, by step.
        reports: one for each step of this call.
        checkpoint: the folder of the last checkpoint; None if no step was made.
    """

    run: str
    store: Path
    policy: Policy
    before: Evaluation | None
    after: Evaluation | None
    validations: Mapping[int, Evaluation]
    reports: Sequence[StepReport]
    checkpoint: Path | None


def optimize(
    program: Callable[..., Any],
    train: Iterable[Example | Mapping[str, Any]],
    reward: Reward,
    trainer: Trainer | str = "local",
    *,
    store: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    run: str | None = None,
    grouping: Grouping | None = None,
    sampling: Sampling | None = None,
    steps: int = 100,
    examples_per_step: int = 4,
    rollouts: int = 12,
    val: Iterable[Example | Mapping[str, Any]] = (),
    validate_every: int | None = None,
    max_concurrency: int = 16,
    timeout: float | None = 120.0,
    isolate: Literal["program", "reward"] | Sequence[Literal["program", "reward"]] = (),
    models: Mapping[str, str] | None = None,
    export_env: bool = False,
    teachers: Sequence[Teacher] = (),
    seed: int = 0,
    resume: bool = False,
    wait: float = 600.0,
    progress: bool = True,
    on_step: OnStep | None = None,
) -> Result:
    """Train the policy behind a program's language-model calls, online.

    Every step draws examples, runs the program several times on each, scores the
    rollouts, aligns their calls into module-level groups and hands these to the trainer;
    the next step runs on the policy that came of it.

    Args:
        program: called as `program(**example.inputs)`, sync or async, its modules decorated
            with `tt.module`; decorated with `tt.program` here if it is not yet.
        train: training examples, `tt.Example` or plain dictionaries.
        reward: `reward(example, output, rollout)` gives a number or a `tt.Score`, sync or
            async. It runs after the rollout has closed.
        trainer: a trainer, or the name of an installed one.
        store: the DuckDB file that everything is recorded in; made if it does not exist.
        model: what a trainer that is given by name starts from: a Hugging Face id, a
            checkpoint folder or a GGUF file.
        run: the name to record under; by default the next free one of run-1, run-2, …
        grouping: how calls are aligned; `Grouping()` by default.
        sampling: of training rollouts, over whatever the program asks; temperature 1
            with nothing cut off by default. Validation uses the program's own.
        steps: of the whole run, those before a resume included.
        examples_per_step: drawn without repetition within a pass over `train`.
        rollouts: of each example in a step.
        val: examples to validate on, before and after.
        validate_every: validate after each so many steps as well.
        max_concurrency: rollouts under way at once.
        timeout: seconds that one rollout may take, and its reward after it; None waits for ever.
        isolate: "program", "reward" or both: run in processes of their own, which can be killed
            whatever they do; see `docs/rollouts.md`.
        models: names that the program has hard-coded, mapped to the policy's name.
        export_env: point `OPENAI_BASE_URL` and `OPENAI_API_KEY` at the policy meanwhile;
            requests for models that are neither the policy nor in `models` are passed on
            to the address and key that stood there before.
        teachers: other models, each of which makes its share of every example's training
            rollouts; see `docs/teachers.md`. Validation is the policy's alone.
        seed: of the order of the examples.
        resume: go on from the last checkpoint of `run`, by default the newest run; without
            one, as when it was killed in its first step, from the beginning.
        wait: seconds to wait for another process that holds the store, whenever one does; a
            training does not end because somebody looks into its store.
        progress: show a progress display on standard error.
        on_step: called as `on_step(step, figures)` after each step, for trackers.

    Returns:
        What came of it. A run that is interrupted by Ctrl-C keeps every finished step;
        `resume=True` goes on after the last.

    Raises:
        InvalidInput: for settings that make no sense, and for a run that another process
            records, before anything is recorded.
        CheckpointError: if there is nothing to resume.
        RolloutsFailed: if nothing works at all in the first rollouts.
        NoCompletions: if the first step's calls never reached the policy.

    Example:
        >>> result = tt.optimize(find, train, reward, "local", model="…", store="traces.duckdb")  # doctest: +SKIP
        >>> result.after.reward - result.before.reward  # doctest: +SKIP
        0.41

    Reference:
        Multi-module GRPO (arXiv 2508.04660), Algorithm 1.
    """
    training, validation = _examples(train, "train"), _examples(val, "val")
    if not training:
        raise InvalidInput("train has no examples; give at least one")
    for name, number in (
        ("steps", steps), ("examples_per_step", examples_per_step), ("rollouts", rollouts),
        ("max_concurrency", max_concurrency), ("validate_every", validate_every), ("timeout", timeout),
    ):  # fmt: skip
        if number is not None and number <= 0:
            raise InvalidInput(f"{name} must be more than 0, not {number}")
    if teachers and export_env:
        raise InvalidInput(
            "export_env is for clients that are made once for all rollouts, and teachers need one for each; leave one "
            "of them out, and build the client from tt.policy() inside the program"
        )
    isolated = (isolate,) if isinstance(isolate, str) else tuple(isolate)
    functions = {"program": program, "reward": reward}
    for kind in isolated:
        if kind not in functions:
            raise InvalidInput(f'isolate takes "program", "reward" or both, not {kind!r}')
        importable_name(kind, functions[kind])
    learner = make_trainer(trainer, model=model) if isinstance(trainer, str) else trainer
    if teachers and not learner.capabilities.weights:
        raise InvalidInput("this trainer changes no weights and learns from no teacher; leave teachers out")

    def run_here() -> Result:
        path = Path(store)
        database = Store(path, wait=wait)
        with ExitStack() as stack:
            name = stack.enter_context(taken_run(run, path, database, resume=resume))
            checkpoints = Checkpoints(path, name)
            done = checkpoints.latest_step()  # 0 for a new run, and for one that was killed before its first
            plan = Plan(
                run=name,
                steps=steps,
                examples_per_step=examples_per_step,
                rollouts=rollouts,
                grouping=grouping or Grouping(),
                sampling=sampling or Sampling(temperature=1.0, top_p=1.0),
                validate_every=validate_every,
                models=dict(models or {}),
                upstream=_upstream() if export_env else None,
                seed=seed,
                teachers=checked_teachers(teachers, rollouts),
            )
            if export_env:
                stack.enter_context(_environment_variables_kept())
            recording = stack.enter_context(record(path, run=name))
            journal = SpoolJournal(recording.spool, name)
            if resume:
                # Without a checkpoint nothing counts, not even the validation before the first step.
                journal.supersede(done + 1 if checkpoints.latest() is not None else 0)
            runner = RolloutRunner(program, reward, max_concurrency=max_concurrency, timeout=timeout, isolate=isolated)
            stack.callback(runner.close)
            display = stack.enter_context(ProgressDisplay(name, steps, first=done, shown=progress))
            env = OnlineEnvironment(
                plan=plan,
                train=training,
                val=validation,
                store=database,
                journal=journal,
                checkpoints=checkpoints,
                resume_from=checkpoints.latest(),
                runner=runner,
                display=display,
                on_step=on_step,
                export_env=export_env,
                teachers=_served(plan, journal, done, stack),
            )
            policy = learner.fit(env)
        database.ingest()
        before, after = env.evaluations.get(done), env.evaluations.get(max(done, steps))
        return Result(name, path, policy, before, after, env.evaluations, env.reports, checkpoints.latest())

    # Of several processes that train together, one runs the program, and the others learn with it.
    return learner.together(run_here) if isinstance(learner, Collective) else run_here()


def _served(plan: Plan, journal: SpoolJournal, step: int, stack: ExitStack) -> Teachers | None:
    """The plan's teachers, answering until the stack ends, and recorded as policies; None where there are none."""
    if not plan.teachers:
        return None
    # Here and not above: a run without teachers needs no web server of its own.
    from tracetune.online.teachers import Teachers

    teachers = stack.enter_context(Teachers(plan, journal))
    for policy in teachers.policies():
        journal.policy(policy, step=step, trainer="teacher")
    return teachers


def _examples(values: Iterable[Example | Mapping[str, Any]], what: str) -> list[Example]:
    examples = [Example.of(value) for value in values]
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InvalidInput(f"two examples of {what} have the id {example.id!r}; give each its own")
        seen.add(example.id)
    return examples


def _upstream() -> Upstream | None:
    """Where the environment sends programs now; None where it gives no key."""
    base_url, api_key = (os.environ.get(name) for name in EXPORTED)
    return Upstream(base_url or OPENAI_BASE_URL, api_key) if api_key else None


@contextmanager
def _environment_variables_kept() -> Iterator[None]:
    found = {name: os.environ.get(name) for name in EXPORTED}
    try:
        yield
    finally:
        for name, value in found.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
