"""The losses of multi-module GRPO, token by token.

Every loss here is a weighted sum over completion tokens. What a token contributes
follows from its ratio and its member's advantage (`token_losses`); how much it weighs
follows from counts alone. The one quantity that tokens of a completion have in common,
GSPO's ratio, stays within the completion, and a completion is never cut. So a step can be
cut into forwards of any size and come to the same gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossName = Literal["grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo"]


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


@dataclass(frozen=True, slots=True)
class Loss:
    """What tells one loss from another.

    Attributes:
        weight: of one of its tokens, from the counts.
        ratio: whose probability is compared with the old one: each token's, or the whole
            completion's, as the geometric mean over its tokens.
        gradient: whether it flows through the ratio, and stops where that is clipped
            ("clipped"), or through the log-probability, which the clipped ratio weighs ("weighed").
    """

    weight: Callable[[Counts], float]
    ratio: Literal["token", "sequence"] = "token"
    gradient: Literal["clipped", "weighed"] = "clipped"


def _mean_of_units(count: Counts) -> float:
    """The mean over a unit's tokens, over a group's units, over the groups: mmGRPO, Eqs. 7 and 9."""
    return 1 / (count.unit_tokens * count.units * count.groups)


def _mean_of_step(count: Counts) -> float:
    return 1 / count.step_tokens


LOSSES: dict[LossName, Loss] = {
    "grpo": Loss(_mean_of_units),
    # the mean over a group's tokens, over the groups
    "bnpo": Loss(lambda count: 1 / (count.group_tokens * count.groups)),
    # a constant length in place of the completion's own, so that long ones are not favoured
    "dr_grpo": Loss(lambda count: 1 / (count.max_completion_length * count.units * count.groups)),
    "dapo": Loss(_mean_of_step),
    "gspo": Loss(_mean_of_units, ratio="sequence"),
    "cispo": Loss(_mean_of_step, gradient="weighed"),
}
"""The losses by the names that TRL and their papers give them."""


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
    lengths: Sequence[int],
    loss: LossName = "grpo",
    clip: float = 0.2,
    clip_high: float | None = None,
    kl: float = 0.0,
    importance_T: Tensor | None = None,
    imitated_T: Tensor | None = None,
) -> TokenLosses:
    r"""Policy-gradient loss of single tokens, with a penalty for leaving the reference.

    .. math:: -c \min(w A, \mathrm{clip}(w, 1 - ε, 1 + ε_h) A) + β (e^{d} - d - 1)

    where w is the ratio of the token's probability to its old one, c its importance, and
    d its reference log-probability less its own. With gspo w is the whole completion's,
    the geometric mean over its tokens. With cispo the first term is
    :math:`-c \min(w, 1 + ε_h) A \log p`, and no gradient flows through w.

    Args:
        logprobs_T: under the policy being trained, nats.
        old_logprobs_T: the same tokens' when they were sampled, or when the step began.
        advantages_T: of each token's member.
        reference_logprobs_T: under the model without its adapter; needed when `kl` is not 0.
        lengths: how many tokens each completion has, in the tokens' order.
        loss: a name in `LOSSES`.
        clip: ε, how far below 1 the ratio may fall before the gradient stops.
        clip_high: ε_h, how far it may rise above 1; `clip` where it is None.
        kl: β, the weight of the penalty.
        importance_T: c; None stands for ones.
        imitated_T: where the loss is :math:`-A \log p` in place of a comparison.

    Example:
        >>> zero = torch.zeros(1)
        >>> token_losses(zero, zero, torch.tensor([2.0]), lengths=[1]).loss_T
        tensor([-2.])

    Reference:
        Multi-module GRPO (arXiv 2508.04660), Eq. 7; GSPO (arXiv 2507.18071), Eq. 5; CISPO
        (arXiv 2506.13585), Eq. 4, without a lower bound, as in TRL, whose `epsilon_high`
        is the whole bound 1 + ε_h there. The KL estimate is k3 of
        http://joschu.net/blog/kl-approx.html, as in GRPO (arXiv 2402.03300), Eq. 4.
    """
    kind = LOSSES[loss]
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    log_ratio_T = logprobs_T - old_logprobs_T
    if kind.ratio == "sequence":
        log_ratio_T = over_completions(log_ratio_T, lengths, torch.mean)
    ratio_T = torch.exp(log_ratio_T)
    clipped_T = (ratio_T > high) & (advantages_T > 0)
    if kind.gradient == "weighed":
        gain_T = ratio_T.detach().clamp(max=high) * advantages_T * logprobs_T
    else:
        gain_T = torch.min(ratio_T * advantages_T, ratio_T.clamp(low, high) * advantages_T)
        clipped_T = clipped_T | ((ratio_T < low) & (advantages_T < 0))
    if imitated_T is not None:
        gain_T = torch.where(imitated_T, advantages_T * logprobs_T, gain_T)
        clipped_T = clipped_T & ~imitated_T
    if importance_T is not None:
        gain_T = importance_T * gain_T
    if reference_logprobs_T is None:
        return TokenLosses(-gain_T, None, clipped_T)
    distance_T = reference_logprobs_T - logprobs_T
    kl_T = torch.exp(distance_T) - distance_T - 1
    return TokenLosses(kl * kl_T - gain_T, kl_T, clipped_T)


def over_completions(values_T: Tensor, lengths: Sequence[int], reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """One number of each completion, in the place of every one of its tokens.

    Example:
        >>> over_completions(torch.tensor([1.0, 3.0, 5.0]), [2, 1], torch.mean)
        tensor([2., 2., 5.])
    """
    # One by one, so that values and gradients are added up in a fixed order on every device.
    return torch.cat([reduce(values).expand_as(values) for values in torch.split(values_T, list(lengths))])
