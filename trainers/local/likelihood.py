"""How likely completions are under the present weights: what a held-out slice is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch

from tracetune.trainers.local.forwards import forwards_of, read_tokens
from tracetune.trainers.local.rows import Row
from tracetune.types import Likelihood

Measured = tuple[float, float]


def likelihood_of(measured: Sequence[Measured]) -> Likelihood:
    """What was measured of a batch, good completions and bad ones apart.

    Example:
        >>> likelihood_of([(1.0, -0.5), (1.0, -1.5), (0.0, -9.0)])
        Likelihood(good=-1.0, bad=None, members=3)
    """
    good = [logprob for advantage, logprob in measured if advantage > 0]
    bad = [logprob for advantage, logprob in measured if advantage < 0]
    return Likelihood(fmean(good) if good else None, fmean(bad) if bad else None, len(measured))


def measured_completions(model: Any, rows: Sequence[Row], budget: int) -> list[Measured]:
    """Advantage and mean log-probability of a token, in nats, of each completion of some rows."""
    found: list[Measured] = []
    with torch.no_grad():
        for forward in forwards_of(rows, budget, model.device):
            lengths = list(forward.lengths)
            for logprobs, advantages in zip(
                torch.split(read_tokens(model, forward).logprobs_T, lengths),
                torch.split(forward.advantages_T, lengths),
                strict=True,
            ):
                found.append((advantages[0].item(), logprobs.mean().item()))
    return found
