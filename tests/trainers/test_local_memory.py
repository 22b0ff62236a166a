"""What a step may hold in memory at once: forwards within the token budget, and layers computed again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tiny_llama import EOS, gradients, group, member, own_logprobs, perturb, tiny_batch, tiny_model
from torch import nn

from tracetune.errors import InvalidInput
from tracetune.trainers.local import LocalTrainer
from tracetune.trainers.local.recomputing import recomputed_layers
from tracetune.types import GroupBatch


def shapes_of(trainer, batch) -> list[tuple[int, int]]:
    """Rows and tokens of each forward of a step."""
    seen = []
    handle = trainer.model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    trainer.step(batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("size", [3, 40])
@pytest.mark.parametrize("prompts", [1, 8])
def test_the_largest_forward_keeps_to_the_budget_whatever_the_group(make_trainer, size, prompts):
    """Ten times the members make ten times the forwards, not larger ones: padding, reference and epochs included."""
    random = torch.Generator().manual_seed(size)
    beginnings = [torch.randint(2, 40, (20,), generator=random).tolist() for _ in range(prompts)]
    members = []
    for slot in range(size):
        completion = [*torch.randint(2, 40, (slot % 13,), generator=random).tolist(), EOS]
        members.append(
            member(beginnings[slot % prompts], completion, (-1.0) ** slot, logprobs=[-3.0] * len(completion))
        )
    batch = GroupBatch([group(*members)])
    budget = 64
    # A tree of all of them would be far larger.
    assert size == 3 or sum(len(one.completion_ids) for one in members) > 3 * budget
    shapes = shapes_of(make_trainer(token_budget=budget, kl=0.1, epochs=2), batch)
    assert max(rows * tokens for rows, tokens in shapes) <= budget
    # A first pass and its reference, and a second pass.
    assert [count % 3 for count in Counter(shapes).values()] == [0] * len(set(shapes))


def test_a_member_longer_than_the_budget_stands_alone(make_trainer):
    """It cannot be cut, so it is one forward of its own length, and no other is longer than the budget."""
    long = member([5] * 50, [8, EOS], 1.0, logprobs=[-3.0, -3.0])
    short = [member([6, slot], [8, EOS], -1.0, logprobs=[-3.0, -3.0]) for slot in range(2, 12)]
    shapes = shapes_of(make_trainer(token_budget=16), GroupBatch([group(long, *short)]))
    assert sorted(rows * tokens for rows, tokens in shapes)[-1] == 51
    assert all(rows * tokens <= 16 for rows, tokens in shapes if tokens != 51)
    assert (1, 51) in shapes


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_computing_layers_again_changes_no_gradient(make_trainer, model, tmp_path, loss):
    """Under a penalty, whose reference runs without the adapter in between, every gradient is the same to the bit."""
    batch = tiny_batch(model, shift=0.3)
    results = []
    for checkpointing in (False, True):
        trainer = make_trainer(gradient_checkpointing=checkpointing, kl=0.1, loss=loss)
        perturb(trainer.model, 0.02)
        results.append(gradients(trainer, batch, tmp_path / str(checkpointing)))
    assert results[0][0].loss == results[1][0].loss
    assert [name for name in results[0][1] if not torch.equal(results[0][1][name], results[1][1][name])] == []


@pytest.mark.parametrize(("checkpointing", "dropout", "runs"), [(False, 0.0, 2), (True, 0.0, 3), (True, 0.1, 3)])
def test_layers_are_computed_again_in_a_step_and_nowhere_else(make_trainer, model, checkpointing, dropout, runs):
    """A layer runs for the loss, for the reference and for the gradient; decoding runs it once, in eval mode."""
    trainer = make_trainer(gradient_checkpointing=checkpointing, kl=0.1, lora_dropout=dropout)
    count = Counter()
    layer = trainer.model.get_base_model().model.layers[0].mlp
    layer.register_forward_pre_hook(lambda module, args: count.update([module.training]))
    trainer.step(tiny_batch(model, sizes=(1,)))
    assert count == {dropout > 0.0: runs}
    count.clear()
    own_logprobs(trainer.model, [5, 6], [7, EOS])
    assert count == {False: 1}
    assert not any(module.training for module in trainer.model.modules())


def test_a_model_without_such_layers_says_so():
    """Nothing would be saved, so it is refused with what to do."""
    with pytest.raises(InvalidInput, match="turn gradient_checkpointing off"), recomputed_layers(nn.Linear(2, 2)):
        pass


def test_layers_kept_in_half_precision_are_computed_again_the_same(tokenizer, tmp_path):
    """With bfloat16 beneath, too, gradients are the same to the bit."""
    batch = tiny_batch(tiny_model(), shift=0.3)
    results = []
    for checkpointing in (False, True):
        trainer = LocalTrainer(
            (tiny_model().to(torch.bfloat16), tokenizer), threads=1, gradient_checkpointing=checkpointing
        )
        results.append(gradients(trainer, batch, tmp_path / str(checkpointing)))
    assert results[0][0].grad_norm > 0.0
    assert [name for name in results[0][1] if not torch.equal(results[0][1][name], results[1][1][name])] == []
