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


@pytest.mark.parametrize(
    ("loss", "kl", "temperature"),
    [
        ("grpo", 0.0, 1.0),
        ("grpo", 0.1, 1.0),
        ("grpo", 0.1, 0.7),
        ("dapo", 0.1, 1.0),
        ("bnpo", 0.0, 1.0),
        ("dr_grpo", 0.1, 1.0),
    ],
)
def test_loss_and_every_gradient_are_trls(make_trainer, tokenizer, tmp_path, loss, kl, temperature):
    """On groups of unequal size and length, with a third of the tokens clipped, TRL has the same loss and gradients."""
    base = tiny_model()
    batch: GroupBatch = tiny_batch(base, seed=3, sizes=(5, 3, 4), temperature=temperature)
    ours = make_trainer(
        loss=loss, kl=kl, max_grad_norm=1e9, max_completion_length=MAX_COMPLETION_LENGTH, learning_rate=1e-12
    )
    perturb(ours.model, 0.02)
    learned = {name: weight.detach().clone() for name, weight in ours.model.named_parameters() if weight.requires_grad}
    report, our_gradients = gradients(ours, batch, tmp_path / "ours")
    assert 0.2 <= report.clip_fraction <= 0.5

    theirs = trl_trainer(tmp_path, tokenizer, learned, loss_type=loss, beta=kl, temperature=temperature)
    step_tokens = sum(len(member.completion_ids) for group in batch for member in group.members)
    losses = [theirs._compute_loss(theirs.model, trl_inputs(group, base, step_tokens, temperature)) for group in batch]
    # dapo divides each group by the step's tokens itself; the others are averaged over the groups.
    total = sum(losses) / (1 if loss == "dapo" else len(batch))
    total.backward()

    assert report.loss == pytest.approx(total.item(), rel=1e-5, abs=1e-6)
    their_gradients = {name: weight.grad for name, weight in theirs.model.named_parameters() if weight.requires_grad}
    assert our_gradients.keys() == their_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in their_gradients.values())
    assert largest > 1e-3
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in their_gradients.values()))
    assert report.grad_norm == pytest.approx(norm, rel=1e-5)
