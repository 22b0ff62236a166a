"""The trl trainer against the local one: the same loss, the same gradients, the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_llama import gradients, group, member, perturb, tiny_batch, tiny_model

from tracetune.trainers.trl import TrlTrainer
from tracetune.types import GroupBatch

# Gradients are compared as they are, and the weights stay.
STILL = {"learning_rate": 1e-12, "max_grad_norm": 1e9}

pytestmark = pytest.mark.filterwarnings("ignore:some members have no log-probabilities")


@pytest.fixture
def make_trl(tokenizer) -> Any:
    """Makes trl trainers of equal models, on one thread."""

    def make(**settings: Any) -> TrlTrainer:
        return TrlTrainer((tiny_model(), tokenizer), device="cpu", threads=1, **settings)

    return make


def assert_same_step(ours, theirs, batch: GroupBatch, folder) -> None:
    """Both trainers' first step on a batch has the same figures and the same gradients."""
    our_report, our_gradients = gradients(ours, batch, folder / "ours")
    their_report, their_gradients = gradients(theirs, batch, folder / "theirs")
    figures, others = our_report.as_dict(), their_report.as_dict()
    del figures["seconds"], others["seconds"]
    for figure in ("skipped", "kl", "entropy"):
        if not isinstance(figures[figure], float):
            assert others.pop(figure) == figures.pop(figure)
    assert others == pytest.approx(figures, rel=1e-4, abs=1e-6)
    assert our_gradients.keys() == their_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in our_gradients.values())
    assert largest > 1e-4
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(their_gradients[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize(
    ("loss", "kl", "temperature", "unit"),
    [
        ("grpo", 0.0, 1.0, "call"),
        ("grpo", 0.1, 0.7, "call"),
        ("grpo", 0.1, 1.0, "trajectory"),
        ("dapo", 0.1, 1.0, "call"),
        ("bnpo", 0.0, 1.0, "call"),
        ("dr_grpo", 0.1, 1.0, "call"),
        ("gspo", 0.1, 0.7, "trajectory"),
        ("cispo", 0.1, 1.0, "call"),
    ],
)
def test_loss_and_every_gradient_are_the_local_trainers(make_trainer, make_trl, tmp_path, loss, kl, temperature, unit):
    """On groups of unequal size, cut into several micro-batches, TRL's update is the local trainer's."""
    batch = replace(tiny_batch(tiny_model(), seed=3, sizes=(5, 3, 4), temperature=temperature), unit=unit)
    settings = {
        "loss": loss,
        "kl": kl,
        "clip_high": 0.28,
        "max_completion_length": 8,
        "learning_rate": 1e-12,
        "max_grad_norm": 1e9,
    }
    ours, theirs = make_trainer(**settings), make_trl(token_budget=30, **settings)
    perturb(ours.model, 0.02)
    perturb(theirs.model, 0.02)
    assert_same_step(ours, theirs, batch, tmp_path)


def mixed_batch() -> GroupBatch:
    """Prompts of unequal length, two temperatures, a greedy member, and one that ends before it begins."""
    model = tiny_model()
    warm, cool = tiny_batch(model, seed=5, sizes=(4,)), tiny_batch(model, seed=6, sizes=(3, 2), temperature=0.6)
    greedy = member([9, 8, 7, 6, 5, 4, 3, 2, 9], [3, 4, 1], 0.9, logprobs=[0.0, 0.0, 0.0], temperature=0.0)
    taught = [
        member([9, 8], [4, 3, 1], 0.5, teacher="other", reward=2.0),
        member([9, 8], [4, 1], -0.5, teacher="other", logprobs=[-0.5, -4.0]),
    ]
    return GroupBatch([*warm, *cool, group(replace(greedy, on_policy=False), member([9], [], 1.0)), group(*taught)])


@pytest.mark.parametrize("importance", [None, "token", "sequence"])
def test_members_of_other_policies_are_learned_as_the_local_trainer_does(make_trainer, make_trl, tmp_path, importance):
    """Importance, imitation of a teacher and log-probabilities that are not known come to the local gradients."""
    settings = {"importance": importance, "importance_cap": 1.5, **STILL}
    ours, theirs = make_trainer(**settings), make_trl(token_budget=40, **settings)
    perturb(ours.model, 0.02)
    perturb(theirs.model, 0.02)
    assert_same_step(ours, theirs, mixed_batch(), tmp_path)


def test_several_epochs_are_the_local_trainers(make_trainer, make_trl):
    """Ratios stay held against the weights that a step began with: weights after two steps of three epochs agree."""
    ours, theirs = (make(epochs=3, kl=0.05, learning_rate=0.01, warmup_steps=3) for make in (make_trainer, make_trl))
    for _ in range(2):
        our_report, their_report = ours.step(mixed_batch()), theirs.step(mixed_batch())
        assert their_report.skipped == our_report.skipped == {"empty_completion": 1}
        assert their_report.loss == pytest.approx(our_report.loss, rel=1e-4)
    assert our_report.clip_fraction > 0.0
    weights = {name: weight for name, weight in ours.model.named_parameters() if weight.requires_grad}
    for name, weight in theirs.model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_resumed_step_is_the_one_that_would_have_been(make_trl, tmp_path):
    """A trainer that was saved and loaded makes the next step on a stored batch as if it had gone on, within 1e-6."""
    settings = {"lora_dropout": 0.1, "learning_rate": 0.01, "epochs": 2, "schedule": "linear", "total_steps": 4}
    first = make_trl(**settings)
    first.step(mixed_batch())
    first.save(tmp_path)
    onward = first.step(tiny_batch(tiny_model(), seed=7))
    resumed = make_trl(**settings)
    resumed.load(tmp_path)
    again = resumed.step(tiny_batch(tiny_model(), seed=7))
    assert again.step == onward.step == 2
    assert again.loss == pytest.approx(onward.loss, abs=1e-6)
    for one, other in zip(first.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)
