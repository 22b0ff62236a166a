"""The suite itself: it passes good trainers, and each of its checks finds the trainer that breaks it."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from broken_trainers import BROKEN, UnigramTrainer
from trainers_without_steps import LearnsOnce, PicksPrompt

from tracetune.testing import TrainerConformance, WeightTrainerConformance


class TestLearnsOnce(TrainerConformance):
    """Weights, without steps."""

    def make_trainer(self):
        return LearnsOnce()


class TestPicksPrompt(TrainerConformance):
    """Prompts alone."""

    def make_trainer(self):
        return PicksPrompt()


def checks_of(suite: type) -> set[str]:
    """The names of a suite's checks."""
    return {name for name in dir(suite) if name.startswith("test_")}


def suite_of(trainer: type) -> TrainerConformance:
    """The suite that a trainer class is tested with."""
    kind = WeightTrainerConformance if issubclass(trainer, UnigramTrainer) else TrainerConformance
    return type("Suite", (kind,), {"make_trainer": lambda self: trainer(), "tokens": range(1, 9), "logprob": -2.2})()


def run(suite: TrainerConformance, check: str, folder) -> None:
    """One check of a suite."""
    method = getattr(suite, check)
    method(**({"tmp_path": folder} if "tmp_path" in inspect.signature(method).parameters else {}))


def test_every_check_has_a_trainer_that_breaks_it():
    """No check of either suite is without a trainer that it must find."""
    assert set(BROKEN) == checks_of(WeightTrainerConformance) >= checks_of(TrainerConformance)


@pytest.mark.parametrize(
    ("check", "trainer"),
    [pytest.param(check, trainer, id=trainer.__name__) for check, trainers in BROKEN.items() for trainer in trainers],
)
def test_a_broken_trainer_is_found_out(check, trainer, tmp_path):
    """The check fails for the trainer that is broken so."""
    with pytest.raises(AssertionError):
        run(suite_of(trainer), check, tmp_path)


def test_a_trainer_by_steps_is_not_let_off_with_the_shorter_suite():
    """A WeightTrainer tested as if it had no steps is told which suite is its own."""
    suite = type("Suite", (TrainerConformance,), {"make_trainer": lambda self: UnigramTrainer()})()
    with pytest.raises(AssertionError, match="test it with WeightTrainerConformance"):
        suite.test_it_is_a_trainer_and_the_suite_is_the_one_for_it()


def test_the_suite_needs_no_pytest():
    """`tracetune.testing` is imported where pytest is not installed, and brings in nothing heavy."""
    code = (
        "import sys; sys.modules['pytest'] = None\n"  # importing it is an error
        "import tracetune.testing\n"
        "print([name for name in ('torch', 'duckdb', 'openai') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
