"""What a training step says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepReport:
    """The figures of one step.

    Attributes:
        step: 1 for the first step of a trainer's life.
        loss: the step's loss; 0 with clipping and no KL on fresh rollouts, by construction.
        kl: mean k3 estimate against the reference, nats a token; None when not computed.
        clip_fraction: share of completion tokens whose ratio was clipped.
        entropy: mean entropy of the policy at completion tokens, nats.
        grad_norm: before clipping.
        tokens: completion tokens learned from, members counted one by one.
        seconds: wall time.
        used: members learned from.
        skipped: members not learned from, by reason.
    """

    step: int
    loss: float
    kl: float | None
    clip_fraction: float
    entropy: float | None
    grad_norm: float
    tokens: int
    seconds: float
    used: int
    skipped: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Everything as a plain dictionary."""
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """What is a number, for a tracker."""
        return {name: value for name, value in self.as_dict().items() if isinstance(value, int | float)}


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a policy holds completions to be that it was not trained on.

    Attributes:
        good: mean log-probability of a token of the completions that did better than their
            group, nats, each completion counting alike; None where there is none.
        bad: the same of those that did worse.
        members: how many completions were measured.
    """

    good: float | None
    bad: float | None
    members: int
