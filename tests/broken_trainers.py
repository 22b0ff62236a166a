"""Trainers that each break one promise, named by the check of the conformance suite that must find them."""

from __future__ import annotations

import math
import random
import zipfile
from collections import Counter, defaultdict
from dataclasses import replace

from trainers_without_steps import LearnsOnce, PicksPrompt
from unigram_package import unigram

from tracetune.errors import CheckpointError
from tracetune.types import Capabilities, GroupBatch

UnigramTrainer = unigram().UnigramTrainer

BROKEN: dict[str, list[type]] = defaultdict(list)


def fails(check: str):
    """Registers a trainer that is broken so that this check must find it."""

    def register(trainer: type) -> type:
        BROKEN[check].append(trainer)
        return trainer

    return register


def changed(batch: GroupBatch, change) -> GroupBatch:
    """The batch with each member as `change(member, place)` gives it."""
    return GroupBatch(
        [
            replace(group, members=[change(member, place) for place, member in enumerate(group.members)])
            for group in batch
        ]
    )


@fails("test_it_is_a_trainer_and_the_suite_is_the_one_for_it")
class ChangesNothing(UnigramTrainer):
    capabilities = Capabilities(exact_tokens=True)


@fails("test_it_validates_before_the_first_step_and_after_the_last")
class ValidatesOnce(LearnsOnce):
    def validate(self, env, policy):
        if not env.evaluations:
            env.evaluate(policy, step=0)


@fails("test_it_validates_before_the_first_step_and_after_the_last")
class ValidatesNever(UnigramTrainer):
    def _validate(self, env):
        pass


@fails("test_without_validation_examples_it_evaluates_nothing")
class ValidatesOnTrain(LearnsOnce):
    def validate(self, env, policy):
        env.evaluate(policy, env.val or env.train, step=0)


@fails("test_the_policy_it_gives_is_recorded_and_can_be_asked")
class RecordsNoPolicy(LearnsOnce):
    def record(self, env, policy, step):
        pass


@fails("test_the_policy_it_gives_is_recorded_and_can_be_asked")
class GivesAnotherPolicy(LearnsOnce):
    def fit(self, env):
        return replace(super().fit(env), version="final")


@fails("test_it_changes_what_it_says_it_changes")
class KeepsItsVersion(UnigramTrainer):
    def endpoint(self, env, version):
        endpoint = super().endpoint(env, version)
        endpoint.publish = lambda version: None
        return endpoint


@fails("test_it_changes_what_it_says_it_changes")
class ChangesPromptsInSilence(PicksPrompt):
    capabilities = Capabilities(weights=True)


@fails("test_where_all_rollouts_earn_the_same_the_weights_stay")
class PublishesAnyway(UnigramTrainer):
    def step(self, batch):
        return replace(super().step(batch), used=1)


@fails("test_completions_are_recorded_exactly")
class LosesCompletions(UnigramTrainer):
    def endpoint(self, env, version):
        completion, seen = env.journal.completion, Counter()

        def every_other(recorded):
            seen["completions"] += 1
            if seen["completions"] % 2:
                completion(recorded)

        env.journal.completion = every_other
        return super().endpoint(env, version)


class WritesCompletions(UnigramTrainer):
    """Records each completion changed."""

    def endpoint(self, env, version):
        completion = env.journal.completion
        env.journal.completion = lambda recorded: self.write(completion, recorded)
        return super().endpoint(env, version)


@fails("test_completions_are_recorded_exactly")
class DropsTheLastLogprob(WritesCompletions):
    def write(self, completion, recorded):
        completion(replace(recorded, completion_logprobs=recorded.completion_logprobs[:-1]))


@fails("test_completions_are_recorded_exactly")
class RecordsTwice(WritesCompletions):
    def write(self, completion, recorded):
        completion(recorded)
        completion(recorded)


@fails("test_completions_are_recorded_exactly")
class StampsTheFirstVersion(WritesCompletions):
    def write(self, completion, recorded):
        completion(replace(recorded, policy_version="conformance@0"))


@fails("test_no_rollout_is_used_twice")
class ReplaysItsFirstBatch(UnigramTrainer):
    def _learn_from_rollouts(self, env, step):
        groups = env.groups
        env.groups = lambda rollouts, grouping: env.batches[0] if env.batches else groups(rollouts, grouping)
        return super()._learn_from_rollouts(env, step)


@fails("test_an_interrupt_is_passed_on")
class SwallowsInterrupts(LearnsOnce):
    def learn(self, lesson, env, endpoint):
        try:
            super().learn(lesson, env, endpoint)
        except KeyboardInterrupt:
            return


@fails("test_a_run_that_was_finished_is_not_made_again")
@fails("test_a_checkpoint_that_it_cannot_read_is_refused")
class StartsAnew(LearnsOnce):
    def fit(self, env):
        env.resume_from = None
        return super().fit(env)


@fails("test_a_checkpoint_that_it_cannot_read_is_refused")
class EvaluatesBeforeItLoads(PicksPrompt):
    def fit(self, env):
        resume_from, env.resume_from = env.resume_from, None
        super().fit(env)
        env.resume_from = resume_from
        return super().fit(env)


@fails("test_equal_trainers_learn_equally")
class Noisy(UnigramTrainer):
    def step(self, batch):
        self.unigram.weights[1] += random.random()
        return super().step(batch)


@fails("test_a_step_changes_the_weights")
class LearnsNothing(UnigramTrainer):
    def step(self, batch):
        before = self.unigram.weights
        report = super().step(batch)
        self.unigram.weights = before
        return report


@fails("test_the_report_accounts_for_every_member")
class CountsGroups(UnigramTrainer):
    def step(self, batch):
        return replace(super().step(batch), used=len(batch))


@fails("test_the_report_accounts_for_every_member")
class CountsPromptTokens(UnigramTrainer):
    def step(self, batch):
        prompts = sum(len(member.prompt_ids) for group in batch for member in group.members)
        report = super().step(batch)
        return replace(report, tokens=report.tokens + prompts)


@fails("test_the_report_accounts_for_every_member")
class NeverCountsSteps(UnigramTrainer):
    def step(self, batch):
        report = super().step(batch)
        self.steps_done = 0
        return report


@fails("test_groups_of_unequal_size_are_learned_from")
class WantsEqualGroups(UnigramTrainer):
    def step(self, batch):
        size = len(batch.groups[0].members) if batch.groups else 0
        return super().step(GroupBatch([group for group in batch if len(group.members) == size]))


@fails("test_groups_without_spread_teach_nothing")
class LearnsFromRewards(UnigramTrainer):
    def step(self, batch):
        return super().step(changed(batch, lambda member, place: replace(member, advantage=member.reward)))


@fails("test_an_empty_batch_is_a_step_that_changes_nothing")
class ReturnsEarly(UnigramTrainer):
    def step(self, batch):
        report = super().step(batch)
        if not report.used:
            self.steps_done -= 1
        return replace(report, step=self.steps_done)


@fails("test_members_without_tokens_are_treated_as_it_says")
class SaysTextIsEnough(UnigramTrainer):
    capabilities = Capabilities(weights=True)


@fails("test_members_without_tokens_are_treated_as_it_says")
class MakesTokensUp(UnigramTrainer):
    def step(self, batch):
        made_up = {"prompt_ids": [1], "completion_ids": [2, 0], "logprobs": [-2.0, -2.0]}
        return super().step(changed(batch, lambda one, place: one if one.is_exact else replace(one, **made_up)))


@fails("test_text_alone_does_not_spoil_the_members_beside_it")
class WantsAllExact(UnigramTrainer):
    def step(self, batch):
        if all(member.is_exact for group in batch for member in group.members):
            return super().step(batch)
        return replace(super().step(GroupBatch([])), skipped={"no_tokens": batch.n_members})


@fails("test_rollouts_of_another_policy_are_treated_as_it_says")
class WantsFreshRollouts(UnigramTrainer):
    def _is_skipped(self, member, skipped):
        if member.policy_version.startswith("another"):
            skipped["stale"] += 1
            return True
        return super()._is_skipped(member, skipped)


@fails("test_an_advantage_that_is_no_number_is_left_out")
class TakesAnyAdvantage(UnigramTrainer):
    def _is_skipped(self, member, skipped):
        return super()._is_skipped(replace(member, advantage=0.0), skipped)


@fails("test_an_advantage_that_is_no_number_is_left_out")
class TakesNaNForZero(UnigramTrainer):
    def step(self, batch):
        def zero(member, place):
            return member if math.isfinite(member.advantage) else replace(member, advantage=0.0)

        return super().step(changed(batch, zero))


@fails("test_the_order_of_groups_and_members_changes_nothing")
class FavoursTheFirst(UnigramTrainer):
    def step(self, batch):
        return super().step(changed(batch, lambda one, place: replace(one, advantage=one.advantage / (1 + place))))


@fails("test_a_loaded_trainer_goes_on_where_the_saved_one_was")
class ForgetsItsStep(UnigramTrainer):
    def load(self, folder):
        super().load(folder)
        self.steps_done = 0


@fails("test_a_loaded_trainer_goes_on_where_the_saved_one_was")
class RoundsItsWeights(UnigramTrainer):
    def load(self, folder):
        super().load(folder)
        self.unigram.weights = [round(weight, 3) for weight in self.unigram.weights]


@fails("test_a_loaded_trainer_goes_on_where_the_saved_one_was")
class SavingResets(UnigramTrainer):
    def save(self, folder):
        super().save(folder)
        self.unigram.weights = [0.0] * len(self.unigram.weights)


@fails("test_a_checkpoint_needs_no_unpickling")
class SavesAZip(UnigramTrainer):
    def save(self, folder):
        super().save(folder)
        with zipfile.ZipFile(folder / "weights.pt", "w") as archive:
            archive.writestr("data.pkl", "")


@fails("test_a_damaged_checkpoint_is_refused_and_changes_nothing")
class TakesWhatThereIs(UnigramTrainer):
    def load(self, folder):
        try:
            super().load(folder)
        except CheckpointError:
            return


@fails("test_a_damaged_checkpoint_is_refused_and_changes_nothing")
class LoadsByHalves(UnigramTrainer):
    def load(self, folder):
        self.unigram.weights = [1.0, *self.unigram.weights[1:]]
        super().load(folder)


@fails("test_a_run_from_beginning_to_end")
class KeepsTheLastAlone(UnigramTrainer):
    def fit(self, env):
        checkpoint = env.checkpoint
        env.checkpoint = lambda state: checkpoint(state) if state.step == env.plan.steps else None
        return super().fit(env)


@fails("test_a_run_from_beginning_to_end")
class ReportsAnotherBatch(UnigramTrainer):
    def fit(self, env):
        record = env.journal.batch
        env.journal.batch = lambda batch, report, **of: record(GroupBatch(batch.groups[:1]), report, **of)
        return super().fit(env)


@fails("test_training_rollouts_are_sampled_as_planned")
class SamplesAsAsked(UnigramTrainer):
    def endpoint(self, env, version):
        endpoint = super().endpoint(env, version)
        answer = endpoint.answer

        def as_asked(request, headers):
            endpoint.sampling = None
            return answer(request, headers)

        endpoint.answer = as_asked
        return endpoint


@fails("test_a_trainer_that_is_open_answers_before_and_after")
class TakesAnyKey(UnigramTrainer):
    def endpoint(self, env, version):
        endpoint = super().endpoint(env, version)
        answer, key = endpoint.answer, endpoint.policy.api_key
        endpoint.answer = lambda request, headers: answer(request, {**headers, "authorization": f"Bearer {key}"})
        return endpoint


@fails("test_a_trainer_that_is_open_answers_before_and_after")
class NeverStops(UnigramTrainer):
    def close(self):
        self._endpoint = None


@fails("test_a_trainer_that_is_open_answers_before_and_after")
class OneChoice(UnigramTrainer):
    def endpoint(self, env, version):
        endpoint = super().endpoint(env, version)
        answer = endpoint.answer
        endpoint.answer = lambda request, headers: answer({**request, "n": 1}, headers)
        return endpoint


@fails("test_an_interrupted_run_goes_on_after_its_last_step")
class CountsFromOneAgain(UnigramTrainer):
    def open(self, env):
        policy = super().open(env)
        self.steps_done = 0
        return policy


@fails("test_a_trainer_that_has_learned_begins_no_new_run")
class BeginsAgain(UnigramTrainer):
    def open(self, env):
        self.steps_done = 0
        return super().open(env)
