"""The oracle: TRL's own loss, called once for each group, on a copy of the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_llama import gradients, own_logprobs, perturb, tiny_batch, tiny_model
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer

from tracetune.types import Group, GroupBatch

MAX_COMPLETION_LENGTH = 8


def trl_trainer(folder: Path, tokenizer: Any, learned: dict[str, torch.Tensor], **settings: Any) -> GRPOTrainer:
    """TRL's trainer of an equal model with these adapter weights."""
    trainer = GRPOTrainer(
        model=tiny_model(),
        reward_funcs=lambda completions, **rest: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=MAX_COMPLETION_LENGTH,
            gradient_checkpointing=False,
            use_bias_correction_kl=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            **settings,
        ),
        train_dataset=Dataset.from_list([{"prompt": "w1"}] * 2),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if weight.requires_grad:
                weight.copy_(learned[name])
    return trainer


def trl_inputs(group: Group, base: Any, step_tokens: int, temperature: float) -> dict[str, torch.Tensor]:
    """A group as TRL's loss receives it: padded at the right, with the reference's log-probabilities."""

    def padded(rows: list[Any], kind: torch.dtype) -> torch.Tensor:
        return pad_sequence([torch.tensor(row, dtype=kind) for row in rows], batch_first=True)

    members = group.members
    prompts = torch.tensor([list(member.prompt_ids) for member in members])
    references = [own_logprobs(base, member.prompt_ids, member.completion_ids, temperature) for member in members]
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": padded([member.completion_ids for member in members], torch.long),
        "completion_mask": padded([[1] * len(member.completion_ids) for member in members], torch.long),
        "advantages": torch.tensor([member.advantage for member in members]),
        "old_per_token_logps": padded([member.logprobs for member in members], torch.float32),
        "ref_per_token_logps": padded(references, torch.float32),
        "num_items_in_batch": torch.tensor(float(step_tokens)),
    }


# Each loss, and what TRL calls the same. Bounds are such that a third or so of the tokens is clipped.
LOSSES = {
    "grpo": ({}, {"loss_type": "grpo"}),
    "bnpo": ({}, {"loss_type": "bnpo"}),
    "dr_grpo": ({}, {"loss_type": "dr_grpo"}),
    "dapo": ({"clip": 0.2, "clip_high": 0.28}, {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
    "gspo": (
        {"clip": 0.03, "clip_high": 0.04},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
    ),
    # TRL gives the whole bound of the ratio, not its distance from 1.
    "cispo": ({"clip_high": 0.1}, {"loss_type": "cispo", "epsilon_high": 1.1}),
}
OVER_THE_STEP = ("dapo", "cispo")


def trl_loss(theirs: GRPOTrainer, inputs: list[dict[str, torch.Tensor]], loss: str) -> torch.Tensor:
    """TRL's loss of a step: dapo and cispo divide each group by the step's tokens, the others are averaged."""
    losses = [theirs._compute_loss(theirs.model, each) for each in inputs]
    return sum(losses) / (1 if loss in OVER_THE_STEP else len(losses))


def learning(model: Any) -> dict[str, torch.nn.Parameter]:
    """The weights of the adapter."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def assert_gradients_are_trls(ours: dict[str, torch.Tensor], theirs: GRPOTrainer) -> None:
    """Every one, to a share of the largest."""
    expected = {name: weight.grad for name, weight in learning(theirs.model).items()}
    assert ours.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("kl", "temperature"), [(0.0, 1.0), (0.1, 0.7)])
def test_loss_and_every_gradient_are_trls(make_trainer, tokenizer, tmp_path, loss, kl, temperature):
    """On groups of unequal size and length, with many tokens clipped, TRL has the same loss and gradients."""
    base = tiny_model()
    batch: GroupBatch = tiny_batch(base, seed=3, sizes=(5, 3, 4), temperature=temperature)
    own, trls = LOSSES[loss]
    ours = make_trainer(
        loss=loss, kl=kl, max_grad_norm=1e9, max_completion_length=MAX_COMPLETION_LENGTH, learning_rate=1e-12, **own
    )
    perturb(ours.model, 0.02)
    learned = {name: weight.detach().clone() for name, weight in learning(ours.model).items()}
    report, our_gradients = gradients(ours, batch, tmp_path / "ours")
    assert 0.1 <= report.clip_fraction <= 0.7

    theirs = trl_trainer(tmp_path, tokenizer, learned, beta=kl, temperature=temperature, **trls)
    step_tokens = sum(len(member.completion_ids) for group in batch for member in group.members)
    total = trl_loss(theirs, [trl_inputs(group, base, step_tokens, temperature) for group in batch], loss)
    total.backward()

    assert report.loss == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
    assert_gradients_are_trls(our_gradients, theirs)
    norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in learning(theirs.model).values()))
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_epochs_are_trls_iterations(make_trainer, tokenizer, tmp_path, loss):
    """Three updates on one batch, old log-probabilities and reference kept, lead to the weights that TRL's lead to."""
    base = tiny_model()
    batch = tiny_batch(base, seed=5, sizes=(4, 3))
    own, trls = LOSSES[loss]
    # Plain gradients would be too small and AdamW's signs too sharp for rounding: a large epsilon makes it neither.
    ours = make_trainer(
        loss=loss, kl=0.1, epochs=3, max_completion_length=MAX_COMPLETION_LENGTH, learning_rate=0.02, **own
    )
    learned = {name: weight.detach().clone() for name, weight in learning(ours.model).items()}
    theirs = trl_trainer(tmp_path, tokenizer, learned, beta=0.1, temperature=1.0, **trls)
    optimizers = [ours._learners[None].optimizer, torch.optim.AdamW(learning(theirs.model).values(), lr=0.02)]
    for optimizer in optimizers:
        optimizer.param_groups[0].update(eps=1e-2, weight_decay=0.0)

    report = ours.step(batch)
    step_tokens = sum(len(member.completion_ids) for group in batch for member in group.members)
    inputs = [trl_inputs(group, base, step_tokens, 1.0) for group in batch]
    losses = []
    for _ in range(3):
        optimizers[1].zero_grad()
        total = trl_loss(theirs, inputs, loss)
        total.backward()
        torch.nn.utils.clip_grad_norm_(learning(theirs.model).values(), 1.0)
        optimizers[1].step()
        losses.append(total.item())

    assert report.loss == pytest.approx(sum(losses) / 3, rel=1e-4, abs=1e-5)
    moved = max(float((weight.detach() - learned[name]).abs().max()) for name, weight in learning(ours.model).items())
    assert moved > 1e-3
    for name, weight in learning(theirs.model).items():
        torch.testing.assert_close(learning(ours.model)[name], weight, rtol=0, atol=1e-3 * moved, msg=name)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss", LOSSES)
def test_off_policy_members_are_corrected_as_trl_corrects_its_sampler(make_trainer, tokenizer, tmp_path, loss, level):
    """What other weights sampled is weighed by its truncated importance: same loss, same gradients, some at the cap."""
    base = tiny_model()
    batch = tiny_batch(base, seed=3, sizes=(5, 3, 4), shift=0.5)
    own, trls = LOSSES[loss]
    ours = make_trainer(
        loss=loss,
        kl=0.1,
        importance=level,
        importance_cap=1.5,
        max_grad_norm=1e9,
        max_completion_length=MAX_COMPLETION_LENGTH,
        learning_rate=1e-12,
        **own,
    )
    perturb(ours.model, 0.02)
    learned = {name: weight.detach().clone() for name, weight in learning(ours.model).items()}
    first = [
        [torch.tensor(own_logprobs(ours.model, one.prompt_ids, one.completion_ids)).float() for one in group.members]
        for group in batch
    ]
    report, our_gradients = gradients(ours, batch, tmp_path / "ours")
    assert report.clip_fraction == 0.0

    theirs = trl_trainer(tmp_path, tokenizer, learned, beta=0.1, temperature=1.0, **trls)
    theirs.use_vllm = theirs.vllm_importance_sampling_correction = True
    step_tokens = sum(len(member.completion_ids) for group in batch for member in group.members)
    inputs = []
    capped = 0
    for group, first_logprobs in zip(batch, first, strict=True):
        each = trl_inputs(group, base, step_tokens, 1.0)
        sampled = each["old_per_token_logps"]
        old = pad_sequence(first_logprobs, batch_first=True)
        # As its `_generate_and_score_completions` does in the modes "token_truncate" and "sequence_truncate".
        difference = (old - sampled) * each["completion_mask"]
        ratio = torch.exp(difference.sum(-1, keepdim=True) if level == "sequence" else difference)
        capped += int((ratio > 1.5).sum())
        inputs.append({**each, "old_per_token_logps": old, "importance_sampling_ratio": ratio.clamp(max=1.5)})
    assert capped > 0
    total = trl_loss(theirs, inputs, loss)
    total.backward()
    assert report.loss == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
    assert_gradients_are_trls(our_gradients, theirs)
