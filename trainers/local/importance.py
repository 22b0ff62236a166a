"""Importance correction: what was sampled by another policy is weighed by how likely it is under this one.

The clipped ratio bounds how far one step moves away from the weights it began with. It
is no measure for completions that other weights, another engine or a teacher sampled:
their ratio lies outside the clip from the start, and they would teach nothing. So their
old log-probabilities are computed anew, under the step's first weights, and the distance
from there to whoever sampled them becomes a weight, cut off at a cap to bound its variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tracetune.trainers.local.loss import over_completions

Level = Literal["token", "sequence"]


def truncated_importance(
    first_logprobs_T: Tensor, recorded_logprobs_T: Tensor, lengths: Sequence[int], *, level: Level, cap: float
) -> Tensor:
    r"""The weight of each token, :math:`\min(p_\text{first} / p_\text{recorded}, \text{cap})`.

    Args:
        first_logprobs_T: under the weights that the step begins with, nats.
        recorded_logprobs_T: under whoever sampled the token; where that is not a number
            the weight is 1.
        lengths: how many tokens each completion has, in the tokens' order.
        level: "token" compares each token's probability, "sequence" the whole
            completion's, the product over its tokens.
        cap: no weight is larger.

    Example:
        >>> first, recorded = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 1.0]).log()
        >>> truncated_importance(first, recorded, [2], level="token", cap=1.5)
        tensor([1.5000, 0.5000])
        >>> truncated_importance(first, recorded, [2], level="sequence", cap=1.5)
        tensor([1., 1.])

    Reference:
        Truncated importance sampling as TRL has it against its own sampler
        (`vllm_importance_sampling_mode` "token_truncate" and "sequence_truncate").
    """
    distance_T = torch.where(recorded_logprobs_T.isnan(), 0.0, first_logprobs_T - recorded_logprobs_T)
    if level == "sequence":
        distance_T = over_completions(distance_T, lengths, torch.sum)
    return torch.exp(distance_T).clamp(max=cap)
