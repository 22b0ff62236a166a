"""What a step's passes add up to, and the report made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tracetune.trainers.local.loss import TokenLosses
from tracetune.types import StepReport


@dataclass
class StepSums:
    """Sums over the tokens of all passes, and over the updates that were made."""

    kl: float | None = None
    clipped: float = 0.0
    entropy: float = 0.0
    tokens: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    updates: int = 0

    def add(self, losses: TokenLosses, entropies_T: Tensor) -> None:
        """Count the tokens of one forward."""
        if losses.kl_T is not None:
            self.kl = (self.kl or 0.0) + float(losses.kl_T.detach().sum())
        self.clipped += float(losses.clipped_T.sum())
        self.entropy += float(entropies_T.sum())
        self.tokens += len(entropies_T)

    def update(self, loss: float, grad_norm: float) -> None:
        """Count an update."""
        self.loss += loss
        self.grad_norm += grad_norm
        self.updates += 1

    def include(self, other: StepSums) -> None:
        """Count what other passes added up to."""
        if other.kl is not None:
            self.kl = (self.kl or 0.0) + other.kl
        self.clipped += other.clipped
        self.entropy += other.entropy
        self.tokens += other.tokens
        self.loss += other.loss
        self.grad_norm += other.grad_norm
        self.updates += other.updates

    def report(self, *, step: int, used: int, tokens: int, seconds: float, skipped: Mapping[str, int]) -> StepReport:
        """The means over all passes and all adapters."""
        if not self.updates:
            return StepReport(step, 0.0, None, 0.0, None, 0.0, tokens, seconds, used, dict(skipped))
        passes, updates = self.tokens, self.updates
        return StepReport(
            step=step,
            loss=self.loss / updates,
            kl=None if self.kl is None else self.kl / passes,
            clip_fraction=self.clipped / passes,
            entropy=self.entropy / passes,
            grad_norm=self.grad_norm / updates,
            tokens=tokens,
            seconds=seconds,
            used=used,
            skipped=dict(skipped),
        )
