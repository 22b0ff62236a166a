"""A world in memory for `Trainer.fit`: a small program, scripted rewards, a journal of lists, no store.

The program has two modules: `plan` is called once in a rollout, `answer` once or twice,
so that its groups are of unequal size. What it asks really goes to the policy's address,
with OpenAI's client. What its rollouts earn does not depend on the answers, so that there
is always something to learn, whatever the policy says.
"""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tracetune.testing.batches import WORDS, grpo_advantages
from tracetune.testing.journal import MemoryJournal
from tracetune.tracer import names
from tracetune.types import (
    Call,
    Checkpoint,
    Completion,
    Evaluation,
    Example,
    Group,
    GroupBatch,
    Grouping,
    Journal,
    LeftOut,
    Member,
    Plan,
    Policy,
    Rollout,
    RolloutSet,
    Sampling,
    StepReport,
)

MAX_TOKENS = 4
"""What the program asks for, in every call."""

ScriptedReward = Callable[[Example, Sequence[str], int], float]


def reward_by_place(example: Example, texts: Sequence[str], index: int) -> float:
    """0, 1/3, 2/3, 1 and again: what the rollouts of an example earn by their place alone."""
    return index % 4 / 3


class ScriptedEnvironment:
    """Implements `types.Environment` without a store, and remembers all that happens.

    Groups share example, module and invocation; of the plan's grouping, `modules`, `eps`
    and `drop_constant` count. A call whose completion the journal has is exact; of the
    others only the text is known.

    Args:
        folder: where checkpoints go, each into `step-<n>`.
        words: what prompts are made of.
        reward: `reward(example, texts, index)` of a rollout's texts and its place among
            those of its example.
        val: how many validation examples there are.
        resume_from: the folder of a checkpoint, when a run goes on.
        interrupt_at: the step whose training rollouts are interrupted, as by Ctrl-C.
        plan: settings of the plan over 2 steps of 1 example and 4 rollouts.

    Attributes:
        recorded: what the trainer wrote into its journal.
        rollout_sets: what each request for rollouts gave, evaluations included.
        batches: what each request for groups gave.
        evaluations: in order.
        checkpoints: the folder of each step's checkpoint.
        reports: of the steps that were announced.
        notices: what trainers said meanwhile.

    Example:
        >>> environment = ScriptedEnvironment(Path("checkpoints"), steps=3)
        >>> environment.plan.steps, [example.id for example in environment.val]
        (3, ['v0', 'v1'])
        >>> policy = trainer.fit(environment)  # doctest: +SKIP
        >>> sorted(environment.checkpoints)  # doctest: +SKIP
        [1, 2, 3]
    """

    def __init__(
        self,
        folder: Path,
        *,
        words: Sequence[str] = WORDS,
        reward: ScriptedReward = reward_by_place,
        val: int = 2,
        resume_from: Path | None = None,
        interrupt_at: int | None = None,
        **plan: Any,
    ) -> None:
        usual: dict[str, Any] = {"run": "conformance", "steps": 2, "examples_per_step": 1, "rollouts": 4}
        self.plan = Plan(**{**usual, **plan})
        self.train: Sequence[Example] = [_example(f"t{number}", words, number) for number in range(4)]
        self.val: Sequence[Example] = [_example(f"v{number}", words, 4 + number) for number in range(val)]
        self.recorded = MemoryJournal()
        self.journal: Journal = self.recorded
        self.resume_from = resume_from
        self.rollout_sets: list[RolloutSet] = []
        self.batches: list[GroupBatch] = []
        self.evaluations: list[Evaluation] = []
        self.checkpoints: dict[int, Path] = {}
        self.reports: list[StepReport] = []
        self.notices: list[str] = []
        self._folder = folder
        self._reward = reward
        self._interrupt_at = interrupt_at
        self._ids = itertools.count(1)
        self._clients: dict[tuple[str, str], Any] = {}

    def examples(self, step: int) -> Sequence[Example]:
        """The training examples of a step: the same ones whenever they are asked for."""
        first = (step - 1) * self.plan.examples_per_step
        return [self.train[(first + offset) % len(self.train)] for offset in range(self.plan.examples_per_step)]

    def rollouts(self, examples: Sequence[Example], n: int, policy: Policy, split: str, *, step: int) -> RolloutSet:
        """Run the program n times on each example under a policy, and score it.

        Raises:
            KeyboardInterrupt: if these are the rollouts that are to be interrupted.
        """
        if split == "train" and step == self._interrupt_at:
            raise KeyboardInterrupt
        rollouts = [self._rollout(policy, example, index, split, step) for example in examples for index in range(n)]
        made = RolloutSet(self.plan.run, split, step, tuple(examples), tuple(rollouts))
        self.rollout_sets.append(made)
        return made

    def groups(self, rollouts: RolloutSet, grouping: Grouping) -> GroupBatch:
        """Align the calls of those rollouts."""
        completions = {completion.call_id: completion for completion in self.recorded.completions}
        columns: dict[tuple[str, str, int], list[Member]] = defaultdict(list)
        for rollout in rollouts.rollouts:
            for call in rollout.calls:
                if grouping.modules is None or call.module in grouping.modules:
                    member = _member(call, rollout, completions.get(call.call_id))
                    columns[rollout.example_id, call.module, call.invocation].append(member)
        groups, left_out, singletons = [], [], []
        for (example_id, module, invocation), members in sorted(columns.items()):
            group = Group(
                {
                    "run": rollouts.run,
                    "split": rollouts.split,
                    "step": rollouts.step,
                    "example_id": example_id,
                    "module": module,
                    "key": "",
                    "invocation": invocation,
                    "turn": 0,
                },
                _with_advantages(members, grouping.eps),
            )
            if len(members) == 1:
                singletons.append(group.id)
            if grouping.drop_constant and len({member.reward for member in members}) == 1:
                left_out.append(LeftOut("group", group.id, "constant"))
            else:
                groups.append(group)
        batch = GroupBatch(groups, left_out, singletons)
        self.batches.append(batch)
        return batch

    def evaluate(self, policy: Policy, examples: Sequence[Example] | None = None, *, step: int) -> Evaluation:
        """Run the program once on each example, by default the validation set, with its own sampling."""
        rollouts = self.rollouts(self.val if examples is None else examples, 1, policy, "val", step=step)
        rewards = tuple(rollouts.rewards)
        evaluation = Evaluation(sum(rewards) / len(rewards), rewards, len(rewards), 0, policy.version)
        self.evaluations.append(evaluation)
        return evaluation

    def checkpoint(self, state: Checkpoint) -> None:
        """Keep a checkpoint."""
        folder = self._folder / f"step-{state.step}"
        if folder.exists():  # a trainer may keep more than one of a step
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        state.save(folder)
        self.checkpoints[state.step] = folder

    def report(self, report: StepReport, rollouts: RolloutSet, batch: GroupBatch) -> None:
        """Remember a finished step."""
        self.reports.append(report)

    def notice(self, text: str) -> None:
        """Remember what a trainer says meanwhile."""
        self.notices.append(text)

    def ask(self, policy: Policy, *, n: int = 1) -> list[str]:
        """What the policy answers to one prompt, as the program asks it."""
        message = {"role": "user", "content": self.train[0].inputs["question"]}
        return [text for text, _ in self._choices(policy, [message], "plan", f"call-{next(self._ids)}", n=n)]

    def rollouts_of(self, split: str) -> list[Rollout]:
        """All rollouts of a split, in order."""
        return [rollout for made in self.rollout_sets if made.split == split for rollout in made.rollouts]

    def _rollout(self, policy: Policy, example: Example, index: int, split: str, step: int) -> Rollout:
        rollout_id = f"rollout-{next(self._ids)}"
        calls: list[Call] = []
        text = example.inputs["question"]
        for module, invocation in [("plan", 0), *(("answer", number) for number in range(1 + index % 2))]:
            messages = [{"role": "user", "content": f"{example.inputs['question']} {text}"}]
            call_id = f"call-{next(self._ids)}"
            [(text, reason)] = self._choices(policy, messages, module, call_id)
            calls.append(
                Call(
                    call_id,
                    rollout_id,
                    module,
                    invocation=invocation,
                    messages=messages,
                    completion=text,
                    finish_reason=reason,
                )
            )
        return Rollout(
            id=rollout_id,
            example_id=example.id,
            run=self.plan.run,
            split=split,
            step=step,
            index=index,
            program="scripted",
            output=text,
            reward=self._reward(example, [call.completion for call in calls], index),
            policy_version=policy.version,
            calls=calls,
        )

    def _choices(
        self, policy: Policy, messages: Sequence[dict[str, Any]], module: str, call_id: str, *, n: int = 1
    ) -> list[tuple[str, str]]:
        """Text and finish reason of n choices; the policy's own text for the module, if it has one, goes in front."""
        instruction = policy.prompts.get(module)
        system = [] if instruction is None else [{"role": "system", "content": instruction}]
        create: Any = partial(self._client(policy).chat.completions.create, model=policy.model, temperature=0.0)
        response = create(
            messages=[*system, *messages],
            n=n,
            max_tokens=MAX_TOKENS,
            extra_headers={names.HEADER_CALL: call_id, names.HEADER_MODULE: module},
        )
        return [(choice.message.content or "", choice.finish_reason) for choice in response.choices]

    def _client(self, policy: Policy) -> Any:
        """OpenAI's client of an address and key, made once: that takes longer than all that it is asked here."""
        from openai import OpenAI

        address = (policy.base_url, policy.api_key)
        if address not in self._clients:
            self._clients[address] = OpenAI(base_url=address[0], api_key=address[1], max_retries=0, timeout=60.0)
        return self._clients[address]


def _example(identity: str, words: Sequence[str], number: int) -> Example:
    question = " ".join(words[(number + offset) % len(words)] for offset in range(3))
    return Example(identity, {"question": question})


def _member(call: Call, rollout: Rollout, completion: Completion | None) -> Member:
    return Member(
        call_id=call.call_id,
        rollout_id=rollout.id,
        module=call.module,
        messages=call.messages,
        prompt_ids=None if completion is None else completion.prompt_token_ids,
        completion_ids=None if completion is None else completion.completion_token_ids,
        logprobs=None if completion is None else completion.completion_logprobs,
        text=call.completion,
        finish_reason=call.finish_reason,
        sampling=completion.sampling if completion else Sampling(),
        policy_version=rollout.policy_version,
        reward=rollout.reward or 0.0,
        advantage=0.0,
        on_policy=completion is not None and completion.sampling.on_policy,
    )


def _with_advantages(members: Sequence[Member], eps: float) -> list[Member]:
    advantages = grpo_advantages([member.reward for member in members], eps)
    return [
        replace(member, advantage=advantage, trajectory=slot)
        for slot, (member, advantage) in enumerate(zip(members, advantages, strict=True))
    ]
