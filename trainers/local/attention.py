"""Attention over prefix trees: who sees whom, and how the model's attention is told.

Nodes stand in depth-first order, so a node's descendants stand right behind it, and one
number a node says everything: where its subtree ends. `sdpa` is told by a dense mask.
Flex attention is told by the rule itself, and leaves out the blocks of 128 by 128 nodes in
which nobody sees anybody; it has gradients on a GPU alone, and was never run on one here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA = "sdpa"
FLEX_FOR_TREES = "flex_for_trees"
"""An implementation of attention, as transformers names them: flex where trees are computed, sdpa for all else."""
_BLOCK = 128


def tree_mask(model: Any, subtree_ends_BN: Tensor) -> Tensor | BlockMask:
    """Who sees whom, in the form that the model's attention takes.

    Args:
        model: a transformers model, with adapters or without.
        subtree_ends_BN: of each node, the first node behind it that does not descend from it.

    Returns:
        A boolean mask_B1NN; or its rule and blocks, where trees are left to flex attention.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
        >>> tree_mask(model, torch.tensor([[3, 2, 3]])).int().tolist()  # two children of one node
        [[[[1, 0, 0], [1, 1, 0], [1, 0, 1]]]]
    """
    rows, nodes = subtree_ends_BN.shape
    device = subtree_ends_BN.device
    sees = _ancestors(subtree_ends_BN)
    # In a tree of one block there is nothing to leave out, and it would be a kind of shape more to compile for.
    if model.config._attn_implementation == FLEX_FOR_TREES and nodes > _BLOCK:
        return create_block_mask(sees, rows, None, nodes, nodes, device=device, BLOCK_SIZE=_BLOCK)
    row_B111 = torch.arange(rows, device=device)[:, None, None, None]
    node_N = torch.arange(nodes, device=device)
    return sees(row_B111, row_B111, node_N[:, None], node_N)


def leave_trees_to_flex(model: Any) -> None:
    """Compute trees by flex attention from here on, and everything else, decoding too, by sdpa as before."""
    AttentionInterface.register(FLEX_FOR_TREES, _attend)
    AttentionMaskInterface.register(FLEX_FOR_TREES, sdpa_mask)
    model.set_attn_implementation(FLEX_FOR_TREES)


def leave_all_to_sdpa(model: Any) -> None:
    """Compute everything by sdpa again."""
    model.set_attn_implementation(SDPA)


def _ancestors(subtree_ends_BN: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule as flex attention asks for it: a node sees itself and what it descends from."""

    def sees(row: Tensor, _head: Tensor, node: Tensor, other: Tensor) -> Tensor:
        return (other <= node) & (node < subtree_ends_BN[row, other])

    return sees


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    # Told by the mask and not by a mode of the model: layers that are computed again for their gradients are, too.
    if isinstance(attention_mask, BlockMask):
        return flex_attention_forward(module, query, key, value, attention_mask, **options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
