"""Two small trainers that implement `fit` themselves: one learns once, as a job does; one picks a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unigram_package import unigram

from tracetune.errors import CheckpointError
from tracetune.types import Capabilities, Environment, GroupBatch, Policy


@dataclass
class Saved:
    """A checkpoint that something can save."""

    step: int
    saver: Any

    def save(self, folder: Path) -> None:
        self.saver.save(folder)


class LearnsOnce:
    """Makes all rollouts of the plan, learns from them in one go, and serves what came of it."""

    name = "learns-once"
    capabilities = Capabilities(weights=True)

    def fit(self, env: Environment) -> Policy:
        lesson = unigram().UnigramTrainer()
        if env.resume_from is not None:
            lesson.load(env.resume_from)
        with self.served(lesson, env) as endpoint:
            self.record(env, endpoint.policy, lesson.steps_done)
            self.validate(env, endpoint.policy)
            if not lesson.steps_done:
                self.learn(lesson, env, endpoint)
                env.checkpoint(Saved(env.plan.steps, lesson))
            self.validate(env, endpoint.policy)
            return endpoint.policy

    def learn(self, lesson: Any, env: Environment, endpoint: Any) -> None:
        steps = range(1, env.plan.steps + 1)
        policy = endpoint.policy
        made = [env.rollouts(env.examples(step), env.plan.rollouts, policy, "train", step=step) for step in steps]
        batch = GroupBatch([group for rollouts in made for group in env.groups(rollouts, env.plan.grouping)])
        report = lesson.step(batch)
        env.journal.batch(batch, report, step=env.plan.steps, policy_version=policy.version)
        if report.used:
            endpoint.publish(f"{env.plan.run}@1")
            self.record(env, endpoint.policy, env.plan.steps)

    def validate(self, env: Environment, policy: Policy) -> None:
        if env.val:
            env.evaluate(policy, step=0)

    def record(self, env: Environment, policy: Policy, step: int) -> None:
        env.journal.policy(policy, step=step, trainer=self.name)

    @contextmanager
    def served(self, lesson: Any, env: Environment) -> Iterator[Any]:
        endpoint = lesson.endpoint(env, f"{env.plan.run}@{lesson.steps_done}")
        endpoint.start()
        try:
            yield endpoint
        finally:
            endpoint.stop()


class PicksPrompt(LearnsOnce):
    """Tries instructions on the training examples and keeps the one that earns most; the weights stay."""

    name = "picks-prompt"
    capabilities = Capabilities(prompts=True)

    def fit(self, env: Environment) -> Policy:
        instruction = self.load(env.resume_from)
        with self.served(unigram().UnigramTrainer(), env) as endpoint:
            policy = self.policy(env, endpoint.policy, instruction)
            self.record(env, policy, 0)
            self.validate(env, policy)
            if instruction is None:
                policy = self.pick(env, policy)
            self.validate(env, policy)
            return policy

    def pick(self, env: Environment, policy: Policy) -> Policy:
        tried = []
        for step, instruction in enumerate(("say red", "say blue"), start=1):
            candidate = self.policy(env, policy, instruction)
            self.record(env, candidate, step)
            made = env.rollouts(env.examples(step), env.plan.rollouts, candidate, "train", step=step)
            tried.append((sum(made.rewards), step, candidate))
        best = max(tried)[2]
        self.instruction = best.prompts["plan"]
        env.checkpoint(Saved(env.plan.steps, self))
        return best

    def policy(self, env: Environment, policy: Policy, instruction: str | None) -> Policy:
        prompts = {} if instruction is None else {"plan": instruction}
        return replace(policy, version=f"{env.plan.run}@{instruction or 'plain'}", prompts=prompts)

    def save(self, folder: Path) -> None:
        (folder / "prompt.json").write_text(json.dumps(self.instruction))

    def load(self, folder: Path | None) -> str | None:
        if folder is None:
            return None
        try:
            return json.loads((folder / "prompt.json").read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder} holds no prompt ({error})") from error
