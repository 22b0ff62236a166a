"""Whether a model can share prefixes, and what its tokens cost.

Sharing needs attention that follows the mask it is given, in every layer. A model is
asked before it is trusted: the same few tokens as a tree and as plain rows must give the
same log-probabilities. Flex attention, on a GPU, is asked for its gradients as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetune.trainers.local.attention import FLEX_FOR_TREES, SDPA, leave_all_to_sdpa, leave_trees_to_flex
from tracetune.trainers.local.forwards import forwards_of, read_tokens
from tracetune.trainers.local.members import TrainableMember
from tracetune.trainers.local.rows import Cost, Row, cut_rows

_FREE = Cost(token=1.0, pair=0.0)
_DEAR = Cost(token=1.0, pair=1e9)
_ANY_LENGTH = 2**31
_TRIAL_POSITIONS = 400


def cost_of(model: Any) -> Cost:
    """What a token and an attention entry cost, counted from the model's shape."""
    config = model.config
    # Tied or not: embeddings are looked up, and the output layer runs where tokens are predicted, tree or path.
    apart = {
        id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    }
    linear = sum(weight.numel() for weight in model.parameters() if id(weight) not in apart)
    # Each entry of an attention matrix is multiplied with the channels of a key and of a value, in every layer.
    pair = 2 * config.hidden_size * config.num_hidden_layers
    return Cost(token=float(linear), pair=float(pair))


def shares_prefixes(model: Any) -> bool:
    """Whether the model gives members of a prefix tree the log-probabilities they have alone."""
    config = model.config
    if config._attn_implementation not in (SDPA, FLEX_FOR_TREES) or getattr(config, "sliding_window", None) is not None:
        return False
    members = [
        TrainableMember((1, 2, 1), completion, None, 1.0, 1.0, 1.0)
        for completion in ((0, 1, 2), (0, 2, 1, 1), (2, 0, 0))
    ]
    device = next(model.parameters()).device
    with torch.inference_mode():
        shared, alone = (
            torch.cat(
                [
                    read_tokens(model, forward).logprobs_T
                    for row in cut_rows(members, cost=cost, budget=64)
                    for forward in forwards_of([row], 64, device)
                ]
            )
            for cost in (_FREE, _DEAR)
        )
    return torch.allclose(shared, alone, atol=1e-2 if model.dtype == torch.bfloat16 else 1e-4)


def prefer_flex_attention(model: Any) -> None:
    """On a GPU, compute trees by flex attention where that is right; on a CPU it has no gradients.

    Args:
        model: one that shares prefixes; the weights that require gradients are those that will learn.
    """
    if model.device.type == "cuda":
        leave_trees_to_flex_if_right(model)


def leave_trees_to_flex_if_right(model: Any) -> bool:
    """Compute trees by flex attention from here on, if they teach what plain rows teach.

    Log-probabilities and gradients of a trial, computed where the model is, may be off
    from those of plain rows by no more than three times what sdpa's are off, or 1e-4 of
    their length: in bfloat16 every way differs from every other. Where they are, where
    anything is raised, or where the model is too short for the trial, all is left to sdpa.

    Returns:
        Whether flex attention is in force.
    """
    if (getattr(model.config, "max_position_embeddings", None) or _TRIAL_POSITIONS) < _TRIAL_POSITIONS:
        return False
    trees, paths = (
        [row for members in _trial() for row in cut_rows(members, cost=cost, budget=_ANY_LENGTH)]
        for cost in (_FREE, _DEAR)
    )
    # Trees of two sizes and both together, with padding: flex attention is compiled for each kind of shape.
    together = [trees[:1], trees[1:], trees]
    alone = [[path] for path in (*paths, *paths)]
    try:
        leave_all_to_sdpa(model)
        right = _learned(model, alone)
        allowed = max(1e-4, 3 * _distance(_learned(model, together), right))
        leave_trees_to_flex(model)
        is_right = _distance(_learned(model, together), right) <= allowed
    except Exception:  # noqa: BLE001  # a device, a compiler or a shape that it cannot do: all are reasons not to use it
        is_right = False
    if not is_right:
        leave_all_to_sdpa(model)
    return bool(model.config._attn_implementation == FLEX_FOR_TREES)


def _trial() -> tuple[list[TrainableMember], list[TrainableMember]]:
    """Members of two trees, the larger one first, with whole blocks of 128 nodes that see each other, or do not."""
    random = np.random.default_rng(0)

    def some_tokens(length: int) -> tuple[int, ...]:
        return tuple(random.integers(3, size=length).tolist())

    def branches(count: int, stem: tuple[int, ...]) -> list[TrainableMember]:
        return [TrainableMember(stem + some_tokens(250), some_tokens(4), None, 1.0, 1.0, 1.0) for _ in range(count)]

    return branches(3, (0, *some_tokens(140))), branches(2, (1, *some_tokens(140)))


def _learned(model: Any, forwards: Sequence[Sequence[Row]]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of all rows, in their order, and the gradient of their sum in the weights that learn."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    logprobs: list[Tensor] = []
    gradients = [torch.zeros_like(weight) for weight in weights]
    for rows in forwards:
        for forward in forwards_of(rows, _ANY_LENGTH, model.device):
            logprobs_T = read_tokens(model, forward).logprobs_T
            for gradient, more in zip(gradients, torch.autograd.grad(logprobs_T.sum(), weights), strict=True):
                gradient += more
            logprobs.append(logprobs_T.detach())
    return torch.cat(logprobs), torch.cat([gradient.flatten().float() for gradient in gradients])


def _distance(found: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> float:
    """How far off the worse of both is, relative to what is right; not a number where anything is not."""
    distances = [torch.dist(one, other) / other.norm() for one, other in zip(found, right, strict=True)]
    # torch's maximum keeps what is not a number; Python's may not.
    return torch.stack(distances).max().item()
