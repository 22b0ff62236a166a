"""Trainers by name."""

from __future__ import annotations

import pytest
from tiny_llama import tiny_model, tiny_tokenizer

from tracetune.errors import InvalidInput, UnknownTrainer
from tracetune.trainers import make_trainer, trainer_names
from tracetune.trainers.local import LocalTrainer
from tracetune.types import Trainer


def test_the_local_trainer_is_found_by_its_name():
    """The name gives the trainer, made with the settings it was given."""
    trainer = make_trainer("local", model=(tiny_model(), tiny_tokenizer()), threads=1, kl=0.5)
    assert isinstance(trainer, LocalTrainer)
    assert isinstance(trainer, Trainer)
    assert trainer.settings.kl == 0.5


def test_an_unknown_name_is_refused_with_those_that_are_known():
    """The message lists what is installed."""
    assert "local" in trainer_names()
    with pytest.raises(UnknownTrainer) as caught:
        make_trainer("torch", model="somewhere")
    assert str(caught.value) == f'no trainer is called "torch"; installed: {", ".join(trainer_names())}.'


def test_a_trainer_that_needs_a_model_says_so():
    """Leaving the model out names the argument that is missing."""
    with pytest.raises(InvalidInput, match="'model'"):
        make_trainer("local")
