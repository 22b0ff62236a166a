"""How likely completions are under the present weights: what a held-out slice is measured by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tracetune.trainers.local.forwards import Forward, read_tokens

Measured = tuple[float, float]


def measured_completions(model: Any, forwards: Sequence[Forward]) -> list[Measured]:
    """Advantage and mean log-probability of a token, in nats, of each completion."""
    found: list[Measured] = []
    with torch.no_grad():
        for forward in forwards:
            lengths = list(forward.lengths)
            for logprobs, advantages in zip(
                torch.split(read_tokens(model, forward).logprobs_T, lengths),
                torch.split(forward.advantages_T, lengths),
                strict=True,
            ):
                found.append((advantages[0].item(), logprobs.mean().item()))
    return found
