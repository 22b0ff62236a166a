"""The loss of multi-module GRPO, token by token.

Every loss here is a weighted sum over completion tokens. What a token contributes
follows from its ratio and its member's advantage (`token_losses`); how much it weighs
follows from counts alone (`NORMALISATIONS`). So a step can be cut into forwards of any
size and come to the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Counts:
    """What a token's weight depends on.

    Attributes:
        unit_tokens: completion tokens of the token's unit: its member, or its whole
            trajectory when rollouts are members.
        units: units in its group.
        group_tokens: completion tokens in its group.
        groups: groups kept.
        step_tokens: completion tokens of the step.
        max_completion_length: what dr_grpo divides by, in tokens.
    """

    unit_tokens: int
    units: int
    group_tokens: int
    groups: int
    step_tokens: int
    max_completion_length: int


NORMALISATIONS: dict[str, Callable[[Counts], float]] = {
    # the mean over a unit's tokens, over a group's units, over the groups: mmGRPO, Eqs. 7 and 9
    "grpo": lambda count: 1 / (count.unit_tokens * count.units * count.groups),
    # the mean over a group's tokens, over the groups
    "bnpo": lambda count: 1 / (count.group_tokens * count.groups),
    # a constant length in place of the completion's own, so that long ones are not favoured
    "dr_grpo": lambda count: 1 / (count.max_completion_length * count.units * count.groups),
    # the mean over the step's tokens
    "dapo": lambda count: 1 / count.step_tokens,
}
"""The weight of one token's loss, by the name that TRL gives the loss."""


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """What each completion token contributes; all of shape [T]."""

    loss_T: Tensor
    kl_T: Tensor | None
    clipped_T: Tensor


def token_losses(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    reference_logprobs_T: Tensor | None = None,
    *,
    clip: float = 0.2,
    kl: float = 0.0,
) -> TokenLosses:
    r"""Clipped policy-gradient loss of single tokens, with a penalty for leaving the reference.

    .. math:: -\min(w A, \mathrm{clip}(w, 1 - ε, 1 + ε) A) + β (e^{d} - d - 1)

    where w is the ratio of the token's probability to the one it was sampled with, and d
    its reference log-probability less its own.

    Args:
        logprobs_T: under the policy being trained, nats.
        old_logprobs_T: the same tokens' when they were sampled.
        advantages_T: of each token's member.
        reference_logprobs_T: under the model without its adapter; needed when `kl` is not 0.
        clip: ε, how far the ratio may move before the gradient stops.
        kl: β, the weight of the penalty.

    Example:
        >>> zero = torch.zeros(1)
        >>> token_losses(zero, zero, torch.tensor([2.0])).loss_T
        tensor([-2.])

    Reference:
        Multi-module GRPO (arXiv 2508.04660), Eq. 7; the KL estimate is k3 of
        http://joschu.net/blog/kl-approx.html, as in GRPO (arXiv 2402.03300), Eq. 4.
    """
    ratio_T = torch.exp(logprobs_T - old_logprobs_T)
    gain_T = torch.min(ratio_T * advantages_T, ratio_T.clamp(1 - clip, 1 + clip) * advantages_T)
    clipped_T = ((ratio_T < 1 - clip) & (advantages_T < 0)) | ((ratio_T > 1 + clip) & (advantages_T > 0))
    if reference_logprobs_T is None:
        return TokenLosses(-gain_T, None, clipped_T)
    distance_T = reference_logprobs_T - logprobs_T
    kl_T = torch.exp(distance_T) - distance_T - 1
    return TokenLosses(kl * kl_T - gain_T, kl_T, clipped_T)
