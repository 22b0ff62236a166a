"""Flex attention: trees by the rule of who sees whom, where a trial shows that it teaches the same.

This machine has no GPU, and on a CPU flex attention has no gradients. So its forward is
held against plain rows as it is, and what a GPU's kernel would do stands in for the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import gradients, group, member, tiny_model
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tracetune.trainers.local import LocalTrainer
from tracetune.trainers.local.attention import FLEX_FOR_TREES, leave_trees_to_flex, tree_mask
from tracetune.trainers.local.forwards import forwards_of, read_tokens
from tracetune.trainers.local.members import TrainableMember
from tracetune.trainers.local.rows import Cost, Row, cut_rows
from tracetune.trainers.local.sharing import leave_trees_to_flex_if_right
from tracetune.types import GroupBatch

ONE_TREE = Cost(token=1.0, pair=0.0)
PATHS_ONLY = Cost(token=1.0, pair=1e9)
CPU = torch.device("cpu")
STEM = tuple(2 + place % 7 for place in range(120))
"""Long enough that a few tokens more fill more than one block of 128."""

some_tokens = st.lists(st.integers(2, 3), min_size=1, max_size=8).map(tuple)
some_members = st.lists(
    st.builds(
        lambda first, prompt, completion: TrainableMember((first, *STEM, *prompt), completion, None, 1.0, 0.0),
        st.integers(0, 1),
        some_tokens,
        some_tokens,
    ),
    min_size=2,
    max_size=8,
)


def beginnings(row: Row) -> list[tuple[int, ...]]:
    """Of each node, the tokens that lead to it and its own."""
    found: list[tuple[int, ...]] = []
    for branch in row.branches:
        tokens = row.token_ids[branch.stem].tolist()
        for token in row.token_ids[branch.nodes].tolist():
            tokens = [*tokens, token]
            found.append(tuple(tokens))
    return found


def visible(row: Row, size: int) -> Tensor:
    """Which node sees which: those whose beginning its own begins with; what pads the row sees itself."""
    expected = torch.eye(size, dtype=torch.bool)
    leading = beginnings(row)
    for node, tokens in enumerate(leading):
        for other, start in enumerate(leading):
            expected[node, other] = tokens[: len(start)] == start
    return expected


@settings(max_examples=20)
@given(members=some_members)
def test_a_node_sees_what_leads_to_it_and_nothing_else(members):
    """The dense mask and the rule and blocks for flex attention say so alike, over rows of several lengths."""
    trees = [row for row in cut_rows(members, cost=ONE_TREE, budget=10_000) if not row.is_path]
    for forward in forwards_of(trees, 10_000, CPU):
        rows, size = forward.input_ids_BN.shape
        expected = torch.stack([visible(row, size) for row in sorted(trees, key=len, reverse=True)])[:, None]
        model = tiny_model()
        assert torch.equal(tree_mask(model, forward.subtree_ends_BN), expected)
        leave_trees_to_flex(model)
        told = tree_mask(model, forward.subtree_ends_BN)
        if size <= 128:
            assert torch.equal(told, expected)
            continue
        assert torch.equal(create_mask(told.mask_mod, rows, 1, size, size, CPU.type), expected)
        padded = torch.nn.functional.pad(expected, (0, -size % 128, 0, -size % 128))
        in_blocks = padded.unflatten(3, (-1, 128)).unflatten(2, (-1, 128)).any(5).any(3)
        assert torch.equal(told.to_dense().bool(), in_blocks)


def members_of_two_trees() -> list[TrainableMember]:
    """Twelve members whose prompts begin alike in two ways, with whole blocks between them that nobody sees."""
    random = torch.Generator().manual_seed(0)
    return [
        TrainableMember(
            (2 + number % 2, *STEM, *torch.randint(2, 40, (60 + 3 * number,), generator=random).tolist()),
            tuple(torch.randint(2, 40, (4,), generator=random).tolist()),
            None,
            0.5 + number % 2,
            1.0,
        )
        for number in range(12)
    ]


def test_the_forward_gives_the_log_probabilities_of_plain_rows():
    """Grouped-query attention by flex, two trees of different size in one forward: as each member alone, to 1e-5."""
    model = tiny_model(max_position_embeddings=512)
    trees, paths = (cut_rows(members_of_two_trees(), cost=cost, budget=10_000) for cost in (ONE_TREE, PATHS_ONLY))
    assert (len(trees), len(paths)) == (2, 12)
    # The larger tree comes first in a forward, as it does among the sorted members.
    trees.sort(key=len, reverse=True)
    order = [reading.member for row in trees for reading in row.readings]
    paths.sort(key=lambda row: order.index(row.readings[0].member))
    leave_trees_to_flex(model)
    (forward,) = forwards_of(trees, 10_000, CPU)
    with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
        shared = read_tokens(model, forward).logprobs_T
        alone = [read_tokens(model, next(forwards_of([row], 1000, CPU))).logprobs_T for row in paths]
    assert torch.allclose(shared, torch.cat(alone), rtol=0, atol=1e-5)


def long_batch() -> GroupBatch:
    """A group whose tree is longer than a block, with members that end alike."""
    return GroupBatch(
        [
            group(
                *(
                    member([7, *STEM], [number, 3, 1][-length:], advantage, logprobs=[-3.0] * length)
                    for number, length, advantage in [(4, 3, 1.0), (5, 3, -0.5), (6, 3, -0.25), (4, 2, 0.5)]
                ),
                *(
                    member([7, *STEM, 9, number], [number, 8, 8, 1], advantage, logprobs=[-3.0] * 4)
                    for number, advantage in [(11, 1.0), (12, -1.0)]
                ),
            )
        ]
    )


@pytest.fixture
def make_trainer(tokenizer: Any) -> Callable[..., LocalTrainer]:
    """Makes local trainers of equal models, with enough positions for a trial."""
    return lambda **settings: LocalTrainer((tiny_model(max_position_embeddings=512), tokenizer), threads=1, **settings)


def test_a_device_without_its_gradients_keeps_the_mask(make_trainer, tmp_path):
    """On a CPU the trial raises: all is left to sdpa as it was, and the next step is the same to the bit."""
    tried, untouched = make_trainer(), make_trainer()
    assert untouched.model.config._attn_implementation == "sdpa"
    assert leave_trees_to_flex_if_right(tried.model) is False
    assert tried.model.config._attn_implementation == "sdpa"
    found, expected = (
        gradients(trainer, long_batch(), tmp_path / name)[1] for trainer, name in ((tried, "a"), (untouched, "b"))
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def right(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """What flex attention computes on a GPU, with gradients: by the dense form of its mask."""
    rows, _, nodes, _ = query.shape
    dense = create_mask(mask.mask_mod, rows, 1, nodes, nodes, CPU.type)
    return sdpa_attention_forward(module, query, key, value, dense, **options)


def seeing_too_much(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Plain causal attention: members see their siblings."""
    return sdpa_attention_forward(module, query, key, value, None, **options)


def losing_gradient(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Right in what it gives; a tenth of what should come back through the keys does not."""
    return right(module, query, 0.9 * key + 0.1 * key.detach(), value, mask, **options)


def not_a_number(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """A kernel that divides by nothing."""
    output, weights = right(module, query, key, value, mask, **options)
    return output * torch.nan, weights


def losing_a_value(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Right but for one node, whose value is lost."""
    lost = torch.ones_like(value)
    lost[:, :, 150] = 0.0
    return right(module, query, key, value * lost, mask, **options)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], list[int]]:
    """Puts another kernel in the place of transformers' flex attention, which needs a GPU to learn.

    Gives the list of how many nodes it was asked for, one number a layer.
    """

    def put(stand_in: Callable[..., Any]) -> list[int]:
        asked: list[int] = []

        def counting(module: Any, query: Tensor, *rest: Any, **options: Any) -> Any:
            found = stand_in(module, query, *rest, **options)
            asked.append(query.shape[2])
            return found

        monkeypatch.setattr("tracetune.trainers.local.attention.flex_attention_forward", counting)
        return asked

    return put


@pytest.mark.parametrize("wrong", [seeing_too_much, losing_gradient, not_a_number, losing_a_value])
def test_a_kernel_that_is_wrong_is_not_used(kernel, make_trainer, wrong):
    """Whatever is wrong, in what it gives or in its gradient alone, trees go on with the mask."""
    asked = kernel(wrong)
    trainer = make_trainer()
    assert leave_trees_to_flex_if_right(trainer.model) is False
    assert trainer.model.config._attn_implementation == "sdpa"
    # Two layers of the two trees of the trial, and of both together: it was heard to the end.
    assert len(asked) == 6


def test_a_model_too_short_for_the_trial_keeps_the_mask(kernel):
    """Nothing is asked of a model beyond its positions: where they are looked up, a GPU would not recover from it."""
    asked = kernel(right)
    model = tiny_model(max_position_embeddings=128)
    assert leave_trees_to_flex_if_right(model) is False
    assert (asked, model.config._attn_implementation) == ([], "sdpa")


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_kernel_that_is_right_teaches_the_same(kernel, make_trainer, tmp_path, recomputed):
    """Trees are left to it, layers that are computed again too; gradients are the mask's, and exports know nothing."""
    asked = kernel(right)
    trainers = [make_trainer(gradient_checkpointing=recomputed, kl=0.1) for _ in range(2)]
    assert leave_trees_to_flex_if_right(trainers[0].model) is True
    assert trainers[0].model.config._attn_implementation == FLEX_FOR_TREES
    asked.clear()
    found, expected = (
        gradients(trainer, long_batch(), tmp_path / name)[1] for trainer, name in zip(trainers, "ab", strict=True)
    )
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * max(one.abs().max() for one in expected.values()), name
    # Two layers, with the adapter and, for the penalty, without; and again for the gradient where nothing was kept.
    assert asked == [137] * (6 if recomputed else 4)
    trainers[0].export(tmp_path / "merged")
    assert FLEX_FOR_TREES not in json.dumps(json.loads(Path(tmp_path / "merged" / "config.json").read_text()))
