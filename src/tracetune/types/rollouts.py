"""Rollouts and their calls, as reward and credit functions see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tracetune.types.examples import Example


@dataclass(frozen=True, slots=True)
class Call:
    """One language-model completion of a rollout.

    `messages` are in OpenAI's chat shape: `{"role": …, "content": …}`.
    """

    call_id: str
    rollout_id: str
    module: str
    key: str = ""
    invocation: int = 0
    turn: int = 0
    choice: int = 0
    messages: Sequence[dict[str, Any]] = ()
    completion: str = ""
    finish_reason: str | None = None
    response_id: str | None = None
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class Rollout:
    """One execution of a program on an example.

    Attributes:
        status: "ok", "error", "format_error", "timeout" or "interrupted".
        index: its 0-based place among the rollouts of its example in this step.
        reward: None while it is not scored.
        calls: in the order in which they were made.
    """

    id: str
    example_id: str
    run: str = ""
    split: str | None = None
    step: int | None = None
    index: int = 0
    program: str = ""
    status: str = "ok"
    error_type: str | None = None
    output: Any = None
    reward: float | None = None
    duration_ms: float = 0.0
    policy_version: str | None = None
    calls: Sequence[Call] = ()


@dataclass(frozen=True, slots=True)
class RolloutSet:
    """The rollouts that one request to the environment made, every one scored that could be."""

    run: str
    split: str
    step: int
    examples: Sequence[Example]
    rollouts: Sequence[Rollout] = field(default=())

    @property
    def rewards(self) -> list[float]:
        """The rewards of the rollouts that have one, in order."""
        return [rollout.reward for rollout in self.rollouts if rollout.reward is not None]
