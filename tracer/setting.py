"""What a recording or a rollout says of everything inside it: run, split, step, policy and sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracetune.tracer import names
from tracetune.tracer.session import Session
from tracetune.types import Policy


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recording or a rollout says of everything inside it.

    Attributes:
        session: the recording that was on; None where nothing recorded.
        sample: the fraction of rollouts that are recorded.
    """

    session: Session | None = None
    run: str = "default"
    split: str | None = None
    step: int | None = None
    policy: Policy | None = None
    sample: float = 1.0

    def attributes(self) -> dict[str, Any]:
        """As attributes of a record; the caller may add to them."""
        attributes: dict[str, Any] = {names.RUN: self.run}
        if self.split is not None:
            attributes[names.SPLIT] = self.split
        if self.step is not None:
            attributes[names.STEP] = self.step
        return attributes

    def span_attributes(self) -> dict[str, Any]:
        """As attributes of a span; the caller may add to them."""
        attributes = self.attributes()
        if self.policy is not None:
            attributes[names.POLICY_VERSION] = self.policy.version
        return attributes
