"""Whether a model can share prefixes, and what its tokens cost.

Sharing needs attention that follows the mask it is given, in every layer. A model is
asked before it is trusted: the same few tokens as a tree and as plain rows must give the
same log-probabilities.
"""

from __future__ import annotations

from typing import Any

import torch

from tracetune.trainers.local.forwards import forwards_of, read_tokens
from tracetune.trainers.local.members import TrainableMember
from tracetune.trainers.local.rows import Cost, cut_rows

_FREE = Cost(token=1.0, pair=0.0)
_DEAR = Cost(token=1.0, pair=1e9)


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
    if config._attn_implementation != "sdpa" or getattr(config, "sliding_window", None) is not None:
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
