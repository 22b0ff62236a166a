"""How likely completions are under the present weights: what a held-out slice is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tracetune.trainers.local.forwards import forwards_of, read_tokens
from tracetune.trainers.local.rows import Row

Measured = tuple[float, float]


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
