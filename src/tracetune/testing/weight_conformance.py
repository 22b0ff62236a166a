"""What every trainer does that learns by steps: the same batches, and what must come of them.

Nothing here knows how a trainer keeps its weights. Whether they changed is read off the
next step: a batch's loss and gradient are those of the weights that it meets.
"""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from tracetune.errors import CheckpointError, TrainerError
from tracetune.testing.batches import scripted_batch, without_tokens
from tracetune.testing.trainer_conformance import TrainerConformance, raised
from tracetune.trainers import WeightTrainer
from tracetune.types import GroupBatch, StepReport

_FIGURES = ("loss", "kl", "clip_fraction", "entropy", "grad_norm")


class WeightTrainerConformance(TrainerConformance):
    """The tests of a trainer that inherits from `WeightTrainer`: inherit, and make one.

    Attributes:
        tokens: ids that its model knows, special ones apart.
        logprob: what its policy gives to a token, about: minus the logarithm of the
            vocabulary's size for a model that knows nothing.
        tolerance: how far figures of equal steps may lie apart, relative and absolute; a
            trainer that repeats itself to the bit, after a resume too, keeps 0.
        order_tolerance: how far they may, where the same members come in another order.
        learns_from_all: False for a trainer that picks, the best of a group say: it then
            uses some of the members, and counts the others as skipped.

    Example:
        >>> class TestMine(WeightTrainerConformance):  # doctest: +SKIP
        ...     def make_trainer(self):
        ...         return MyWeightTrainer(model="…")
    """

    tokens: ClassVar[range] = range(5, 30)
    logprob: ClassVar[float] = -3.0
    tolerance: ClassVar[float] = 0.0
    order_tolerance: ClassVar[float] = 1e-4
    learns_from_all: ClassVar[bool] = True

    def make_trainer(self) -> WeightTrainer:
        """A new trainer; every call gives an equal one, which shares nothing with those before."""
        raise NotImplementedError("make_trainer gives the trainer to test")

    def batch(self, **settings: Any) -> GroupBatch:
        """A batch in the trainer's own tokens; see `scripted_batch`."""
        return scripted_batch(**{"tokens": self.tokens, "logprob": self.logprob, "words": self.words, **settings})

    def test_equal_trainers_learn_equally(self) -> None:
        """Two trainers that were made alike give the same figures for the same batches, step by step."""
        first, second = self.make_trainer(), self.make_trainer()
        for seed in (1, 2):
            batch = self.batch(seed=seed)
            self._assert_same(first.step(batch), second.step(batch))

    def test_a_step_changes_the_weights(self) -> None:
        """Where members differ in what they earned, the next step meets other weights; so it says `weights`."""
        trainer = self.make_trainer()
        assert trainer.capabilities.weights
        self._assert_used(trainer.step(self.batch()), 7)
        assert self._has_learned(trainer, steps=1)

    def test_the_report_accounts_for_every_member(self) -> None:
        """Steps count up, figures are finite, tokens are those of the members used, and no member is unaccounted."""
        trainer = self.make_trainer()
        for step, sizes in ((1, (4, 3)), (2, (2, 6)), (3, (5,))):
            batch = self.batch(seed=step, sizes=sizes)
            report = trainer.step(batch)
            assert report.step == trainer.steps_done == step
            self._assert_used(report, batch.n_members)
            tokens = sum(len(member.completion_ids or ()) for group in batch for member in group.members)
            assert report.tokens == tokens if self.learns_from_all else report.used <= report.tokens < tokens
            assert report.seconds > 0.0
            assert report.grad_norm > 0.0

    def test_groups_of_unequal_size_are_learned_from(self) -> None:
        """Groups of 6, 2 and 3 members are one batch; a group of one adds nothing and is accounted for."""
        groups = self.make_trainer().step(self.batch(sizes=(6, 2, 3)))
        self._assert_used(groups, 11)
        with_singleton = self.make_trainer().step(self.batch(sizes=(6, 2, 3, 1)))
        _assert_accounted(with_singleton, 12)
        assert with_singleton.used >= groups.used

    def test_groups_without_spread_teach_nothing(self) -> None:
        """No member is used and no weight changes, unless a penalty is at work, which the report then shows."""
        trainer = self.make_trainer()
        report = trainer.step(self.batch(constant=True))
        _assert_accounted(report, 7)
        if report.used:
            assert report.kl is not None, "members without an advantage were used, and no penalty is reported"
        else:
            assert (report.tokens, report.grad_norm) == (0, 0.0)
            assert not self._has_learned(trainer, steps=1)

    def test_an_empty_batch_is_a_step_that_changes_nothing(self) -> None:
        """The step counts, its report is empty, and the weights stay."""
        trainer = self.make_trainer()
        report = trainer.step(GroupBatch([]))
        assert (report.step, report.used, report.tokens, dict(report.skipped)) == (1, 0, 0, {})
        _assert_figures(report)
        assert not self._has_learned(trainer, steps=1)

    def test_members_without_tokens_are_treated_as_it_says(self) -> None:
        """One that needs exact tokens leaves text alone out, with a reason; one that does not learns from it."""
        trainer = self.make_trainer()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trainer may well say that it has to guess at the tokens
            report = trainer.step(without_tokens(self.batch()))
        _assert_accounted(report, 7)
        if trainer.capabilities.exact_tokens:
            assert report.used == 0
            assert not self._has_learned(trainer, steps=1)
        else:
            self._assert_used(report, 7)
            assert self._has_learned(trainer, steps=1)

    def test_text_alone_does_not_spoil_the_members_beside_it(self) -> None:
        """In a mixed batch the exact members are used, whatever becomes of the others."""
        exact, text = self.batch(seed=1), without_tokens(self.batch(seed=2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = self.make_trainer().step(GroupBatch([*exact.groups, *text.groups]))
        _assert_accounted(report, 14)
        assert report.used >= self.make_trainer().step(exact).used > 0

    def test_rollouts_of_another_policy_are_treated_as_it_says(self) -> None:
        """One that does not ask for fresh rollouts learns from those of another version; either accounts for them."""
        trainer = self.make_trainer()
        report = trainer.step(self.batch(policy_version="another-run@7"))
        if trainer.capabilities.on_policy:
            _assert_accounted(report, 7)
        else:
            self._assert_used(report, 7)

    def test_an_advantage_that_is_no_number_is_left_out(self) -> None:
        """NaN and infinity are counted as skipped, and the rest learns as if they had not been there."""
        batch = self.batch()
        spoilt = [
            replace(group, members=[*group.members, replace(group.members[0], advantage=advantage)])
            for group, advantage in zip(batch, (math.nan, math.inf), strict=True)
        ]
        expected, found = self.make_trainer().step(batch), self.make_trainer().step(GroupBatch(spoilt))
        _assert_accounted(found, 9)
        self._assert_same(expected, found, self.order_tolerance)

    def test_the_order_of_groups_and_members_changes_nothing(self) -> None:
        """The same members in another order are the same step, to rounding."""
        batch, shuffle = self.batch(sizes=(4, 3, 2)), random.Random(7).shuffle  # noqa: S311  an order, not a secret
        members = [list(group.members) for group in batch]
        for column in members:
            shuffle(column)
        groups = [replace(group, members=column) for group, column in zip(batch, members, strict=True)]
        shuffle(groups)
        straight, shuffled = self.make_trainer(), self.make_trainer()
        for trainers_batch in ((batch, GroupBatch(groups)), (batch, batch)):
            self._assert_same(straight.step(trainers_batch[0]), shuffled.step(trainers_batch[1]), self.order_tolerance)

    def test_a_loaded_trainer_goes_on_where_the_saved_one_was(self, tmp_path: Path) -> None:
        """The next step of a fresh trainer after `load` is the one that would have been, and saving changes nothing."""
        straight, saved, loaded = self.make_trainer(), self.make_trainer(), self.make_trainer()
        for trainer in (straight, saved):
            trainer.step(self.batch(seed=1))
            trainer.step(self.batch(seed=2))
        saved.save(_new(tmp_path / "state"))
        loaded.load(tmp_path / "state")
        assert loaded.steps_done == 2
        for seed in (3, 4):
            expected = straight.step(self.batch(seed=seed))
            self._assert_same(expected, saved.step(self.batch(seed=seed)))
            self._assert_same(expected, loaded.step(self.batch(seed=seed)))

    def test_a_checkpoint_needs_no_unpickling(self, tmp_path: Path) -> None:
        """What is saved runs no code when it is read."""
        trainer = self.make_trainer()
        trainer.step(self.batch())
        trainer.save(_new(tmp_path / "state"))
        files = [path for path in sorted((tmp_path / "state").rglob("*")) if path.is_file()]
        assert files
        assert [path.name for path in files if _is_pickle(path.read_bytes())] == []

    def test_a_damaged_checkpoint_is_refused_and_changes_nothing(self, tmp_path: Path) -> None:
        """A folder that is missing, empty, cut short or full of something else is a CheckpointError."""
        trainer = self.make_trainer()
        trainer.step(self.batch())

        def empty(files: list[Path]) -> None:
            for path in files:
                path.unlink()

        def foreign(files: list[Path]) -> None:
            for path in files:
                path.write_bytes(b"\x00 not a checkpoint")

        def cut(files: list[Path]) -> None:
            largest = max(files, key=lambda path: path.stat().st_size)
            largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])

        other = self.make_trainer()
        raised(CheckpointError, lambda: other.load(tmp_path / "missing"))
        for damage in (empty, foreign, cut):
            folder = _new(tmp_path / damage.__name__)
            trainer.save(folder)
            damage([path for path in folder.rglob("*") if path.is_file()])
            raised(CheckpointError, lambda: other.load(folder))  # noqa: B023  called at once
        assert other.steps_done == 0
        self._assert_same(self.make_trainer().step(self.batch()), other.step(self.batch()))

    def test_a_run_from_beginning_to_end(self, tmp_path: Path) -> None:
        """Each step has its batch, its report, its checkpoint and its version, and none of them is another's."""
        environment = self.environment(tmp_path, steps=3)
        trainer = self.make_trainer()
        policy = trainer.fit(environment)
        assert [report.step for report in environment.reports] == [1, 2, 3]
        assert sorted(environment.checkpoints) == [1, 2, 3]
        assert [record.step for record in environment.recorded.batches] == [1, 2, 3]
        assert [record.batch for record in environment.recorded.batches] == environment.batches
        assert [record.report for record in environment.recorded.batches] == environment.reports
        for batch, report in zip(environment.batches, environment.reports, strict=True):
            _assert_accounted(report, batch.n_members)
            assert report.used > 0
        versions = [record.policy.version for record in environment.recorded.policies]
        assert len(versions) == len(set(versions)) == 4
        trained = [record.policy_version for record in environment.recorded.batches]
        assert [*trained, policy.version] == versions

    def test_training_rollouts_are_sampled_as_planned(self, tmp_path: Path) -> None:
        """Training goes over what the program asks, and validation does not."""
        environment = self.environment(tmp_path)
        self.make_trainer().fit(environment)
        sampled: dict[str, set[tuple[float | None, bool]]] = {"train": set(), "val": set()}
        split_of = {
            call.call_id: rollout.split or ""
            for made in environment.rollout_sets
            for rollout in made.rollouts
            for call in rollout.calls
        }
        for completion in environment.recorded.completions:
            sampling = completion.sampling
            sampled[split_of[completion.call_id or ""]].add((sampling.temperature, sampling.on_policy))
        assert sampled == {"train": {(1.0, True)}, "val": {(0.0, False)}}

    def test_a_trainer_that_is_open_answers_before_and_after(self, tmp_path: Path) -> None:
        """Opened, it answers with its key and no other, several choices at once; closed, it answers nobody."""
        import openai

        environment = self.environment(tmp_path, steps=1, val=0)
        with self.make_trainer() as trainer:
            before = trainer.open(environment)
            assert len(environment.ask(before, n=2)) == 2
            choices = environment.recorded.completions
            assert [(one.choice, one.policy_version) for one in sorted(choices, key=lambda one: one.choice)] == [
                (0, before.version),
                (1, before.version),
            ]
            raised(openai.AuthenticationError, lambda: environment.ask(replace(before, api_key="another")))
            after = trainer.fit(environment)
            assert (after.base_url, after.model) == (before.base_url, before.model)
            assert after.version != before.version
            environment.ask(after)
            assert environment.recorded.completions[-1].policy_version == after.version
        raised(openai.APIConnectionError, lambda: environment.ask(after))
        raised(TrainerError, lambda: trainer.policy)

    def test_an_interrupted_run_goes_on_after_its_last_step(self, tmp_path: Path) -> None:
        """Ctrl-C in the second step keeps the first; a fresh trainer makes the second and the third anew."""
        environment = self.environment(tmp_path / "first", steps=3, interrupt_at=2)
        raised(KeyboardInterrupt, lambda: self.make_trainer().fit(environment))
        assert sorted(environment.checkpoints) == [1]
        resumed = self.environment(tmp_path / "second", steps=3, resume_from=environment.checkpoints[1])
        policy = self.make_trainer().fit(resumed)
        assert [report.step for report in resumed.reports] == [2, 3]
        assert [made.step for made in resumed.rollout_sets if made.split == "train"] == [2, 3]
        versions = [record.policy.version for record in resumed.recorded.policies]
        assert versions[0] == environment.recorded.policies[-1].policy.version
        assert versions[-1] == policy.version
        assert len(set(versions)) == 3

    def test_a_trainer_that_has_learned_begins_no_new_run(self, tmp_path: Path) -> None:
        """A second run would go on from the first one's weights without saying so: TrainerError."""
        trainer = self.make_trainer()
        trainer.step(self.batch())
        environment = self.environment(tmp_path)
        raised(TrainerError, lambda: trainer.fit(environment))
        assert environment.rollout_sets == []

    def _has_learned(self, trainer: WeightTrainer, *, steps: int) -> bool:
        """Whether a trainer that has made some steps meets a batch with other weights than a new one does."""
        assert trainer.steps_done == steps
        probe = self.batch(seed=99)
        new, present = self.make_trainer().step(probe), trainer.step(probe)
        return not _same(new, present, self.tolerance)

    def _assert_used(self, report: StepReport, members: int) -> None:
        """The report accounts for the members, and as many of them are used as the trainer learns from."""
        _assert_accounted(report, members)
        if self.learns_from_all:
            assert report.used == members, f"not all members were used: {dict(report.skipped)}"
        else:
            assert report.used > 0

    def _assert_same(self, expected: StepReport, found: StepReport, tolerance: float | None = None) -> None:
        tolerance = self.tolerance if tolerance is None else tolerance
        assert (found.step, found.tokens, found.used) == (expected.step, expected.tokens, expected.used)
        assert _same(expected, found, tolerance), f"{found} is not {expected}, within {tolerance}"

    @classmethod
    def _tests_steps(cls) -> bool:
        return True


def _same(left: StepReport, right: StepReport, tolerance: float) -> bool:
    """Whether two steps have the same figures."""
    pairs = [(getattr(left, name), getattr(right, name)) for name in _FIGURES]
    return all(
        one == other or (None not in (one, other) and math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance))
        for one, other in pairs
    )


def _assert_figures(report: StepReport) -> None:
    figures = {name: value for name, value in report.as_dict().items() if isinstance(value, float)}
    assert [name for name, value in figures.items() if not math.isfinite(value)] == []
    assert 0.0 <= report.clip_fraction <= 1.0


def _assert_accounted(report: StepReport, members: int) -> None:
    _assert_figures(report)
    assert all(reason and count > 0 for reason, count in report.skipped.items())
    assert report.used + sum(report.skipped.values()) == members, f"of {members} members some are not in {report}"


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _is_pickle(content: bytes) -> bool:
    """Whether a file is a pickle, or a zip, in which PyTorch keeps one."""
    return content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
