"""What every trainer does, whatever it learns from: `fit` in a world that ends, stops, resumes and fails.

The suite is a class of tests. What it asks of a trainer follows from the trainer's own
`capabilities`: a check that reads differently for two kinds of trainers asserts
something of either, and none is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tracetune.errors import CheckpointError, TrainerError
from tracetune.testing.batches import WORDS
from tracetune.testing.environment import ScriptedEnvironment
from tracetune.trainers import WeightTrainer
from tracetune.types import Capabilities, Policy, Trainer

E = TypeVar("E", bound=BaseException)


class TrainerConformance:
    """The tests of a trainer that implements `fit` itself: inherit, and make one.

    Run it with pytest. A trainer that inherits from `WeightTrainer` is tested with
    `WeightTrainerConformance`, which asks all of this and what its steps do.

    Attributes:
        words: what prompts are made of; the trainer's tokenizer should know them.
        plan: settings of the plan that the trainer is fitted to; see `ScriptedEnvironment`.

    Example:
        >>> class TestMine(TrainerConformance):  # doctest: +SKIP
        ...     def make_trainer(self):
        ...         return MyTrainer(model="…")
    """

    words: ClassVar[tuple[str, ...]] = WORDS
    plan: ClassVar[dict[str, Any]] = {}

    def make_trainer(self) -> Trainer:
        """A new trainer; every call gives an equal one, which shares nothing with those before."""
        raise NotImplementedError("make_trainer gives the trainer to test")

    def environment(self, folder: Path, **settings: Any) -> ScriptedEnvironment:
        """The world that the trainer is fitted in; override it to give the trainer more of one."""
        return ScriptedEnvironment(folder, words=self.words, **{**self.plan, **settings})

    def test_it_is_a_trainer_and_the_suite_is_the_one_for_it(self) -> None:
        """It has `capabilities` that change something, and one that learns by steps is asked about its steps."""
        trainer = self.make_trainer()
        assert isinstance(trainer, Trainer), "a trainer has `capabilities` and `fit`"
        assert isinstance(trainer.capabilities, Capabilities)
        assert trainer.capabilities.weights or trainer.capabilities.prompts, "it says that it changes nothing"
        assert self._tests_steps() or not isinstance(trainer, WeightTrainer), (
            "it inherits from WeightTrainer: test it with WeightTrainerConformance"
        )

    def test_it_validates_before_the_first_step_and_after_the_last(self, tmp_path: Path) -> None:
        """The first thing that is asked of the world is an evaluation, and the last is one of the policy it gives."""
        environment = self.environment(tmp_path)
        policy = self.make_trainer().fit(environment)
        splits = [made.split for made in environment.rollout_sets]
        assert (splits[0], splits[-1]) == ("val", "val")
        assert len(environment.evaluations) >= 2
        assert environment.evaluations[-1].policy_version == policy.version
        assert environment.evaluations[-1].n == len(environment.val)

    def test_without_validation_examples_it_evaluates_nothing(self, tmp_path: Path) -> None:
        """A run without a validation set trains all the same."""
        environment = self.environment(tmp_path, val=0)
        assert self.make_trainer().fit(environment).version
        assert environment.evaluations == []

    def test_the_policy_it_gives_is_recorded_and_can_be_asked(self, tmp_path: Path) -> None:
        """It answers OpenAI's client for as long as it is evaluated, and its version stands in the journal."""
        environment = self.environment(tmp_path)
        policy = self.make_trainer().fit(environment)
        assert isinstance(policy, Policy)
        assert policy.base_url.startswith(("http://", "https://"))
        recorded = [record.policy for record in environment.recorded.policies]
        assert recorded, "no version of the policy was recorded in the journal"
        assert (recorded[-1].model, recorded[-1].version) == (policy.model, policy.version)
        versions = {record.policy.version for record in environment.recorded.policies}
        asked = {rollout.policy_version for made in environment.rollout_sets for rollout in made.rollouts}
        assert asked <= versions, "rollouts ran under a version that was never recorded"

    def test_it_changes_what_it_says_it_changes(self, tmp_path: Path) -> None:
        """With something to learn, weights get a new version; without the capability, prompts stay as they were."""
        trainer = self.make_trainer()
        environment = self.environment(tmp_path)
        policy = trainer.fit(environment)
        first = environment.recorded.policies[0].policy
        if trainer.capabilities.weights:
            assert policy.version != first.version
        else:
            assert policy.model == first.model
        if not trainer.capabilities.prompts:
            assert policy.prompts == first.prompts

    def test_where_all_rollouts_earn_the_same_the_weights_stay(self, tmp_path: Path) -> None:
        """Nothing can be learned: it gives the policy that it began with, or says that there was nothing."""
        trainer = self.make_trainer()
        environment = self.environment(tmp_path, reward=lambda example, texts, index: 1.0)
        if not trainer.capabilities.weights:
            assert trainer.fit(environment).model == environment.recorded.policies[0].policy.model
            return
        try:
            version = trainer.fit(environment).version
        except TrainerError:
            return
        assert version == environment.evaluations[0].policy_version

    def test_completions_are_recorded_exactly(self, tmp_path: Path) -> None:
        """Whoever needs exact tokens has them for every call, and what is recorded is whole."""
        trainer = self.make_trainer()
        environment = self.environment(tmp_path)
        trainer.fit(environment)
        calls = {
            call.call_id: (call, rollout.policy_version)
            for made in environment.rollout_sets
            for rollout in made.rollouts
            for call in rollout.calls
        }
        completions = {completion.call_id: completion for completion in environment.recorded.completions}
        if trainer.capabilities.exact_tokens or self._tests_steps():
            assert completions.keys() == calls.keys(), "not every call has its completion in the journal"
        assert len(completions) == len(environment.recorded.completions), "a completion is recorded twice"
        for call_id, completion in completions.items():
            call, version = calls[call_id or ""]
            assert completion.text == call.completion
            assert completion.module == call.module
            if trainer.capabilities.weights:  # else a version is one of prompts, which whoever samples cannot know
                assert completion.policy_version == version
            logprobs = completion.completion_logprobs or ()
            assert len(logprobs) == len(completion.completion_token_ids) > 0
            assert len(completion.prompt_token_ids) > 0
            assert all(math.isfinite(logprob) and logprob <= 1e-4 for logprob in logprobs)

    def test_no_rollout_is_used_twice(self, tmp_path: Path) -> None:
        """Each batch in the journal is made of training rollouts of its own."""
        environment = self.environment(tmp_path, steps=3)
        self.make_trainer().fit(environment)
        made = {rollout.id for rollout in environment.rollouts_of("train")}
        used: list[str] = []
        for record in environment.recorded.batches:
            used += {member.rollout_id for group in record.batch for member in group.members}
        assert len(used) == len(set(used))
        assert set(used) <= made

    def test_an_interrupt_is_passed_on(self, tmp_path: Path) -> None:
        """Ctrl-C in its rollouts ends `fit`, with KeyboardInterrupt and nothing else."""
        environment = self.environment(tmp_path, interrupt_at=1)
        raised(KeyboardInterrupt, lambda: self.make_trainer().fit(environment))
        assert environment.reports == []

    def test_a_run_that_was_finished_is_not_made_again(self, tmp_path: Path) -> None:
        """From its last checkpoint, a trainer gives the same policy and makes no training rollout again."""
        environment = self.environment(tmp_path / "first")
        policy = self.make_trainer().fit(environment)
        for step in sorted(environment.checkpoints)[-1:]:
            resumed = self.environment(tmp_path / "second", resume_from=environment.checkpoints[step])
            again = self.make_trainer().fit(resumed)
            assert (again.model, again.version) == (policy.model, policy.version)
            assert resumed.rollouts_of("train") == []

    def test_a_checkpoint_that_it_cannot_read_is_refused(self, tmp_path: Path) -> None:
        """An empty folder, or one of another's files, is a CheckpointError before anything is asked or recorded."""
        for name, contents in (("empty", None), ("foreign", b"\x00 not a checkpoint")):
            folder = tmp_path / name
            folder.mkdir()
            if contents is not None:
                (folder / "trainer.json").write_bytes(contents)
                (folder / "state.json").write_bytes(contents)
            environment = self.environment(tmp_path / f"{name}-run", resume_from=folder)
            error = raised(CheckpointError, lambda: self.make_trainer().fit(environment))  # noqa: B023  called at once
            assert str(error)
            assert environment.rollout_sets == []
            assert environment.recorded.policies == []

    @classmethod
    def _tests_steps(cls) -> bool:
        """Whether the suite asks about steps; see `WeightTrainerConformance`."""
        return False


def raised(kind: type[E], work: Callable[[], object]) -> E:
    """The error of this kind that a piece of work raises; any other passes through.

    Raises:
        AssertionError: if it raises nothing.
    """
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")
