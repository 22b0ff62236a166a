"""A batch of rollouts that are to be made: what is asked for, what is made, what went wrong."""

from __future__ import annotations

import contextvars
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracetune.errors import TracetuneWarning
from tracetune.types import Example, Policy, Rollout


class RolloutWarning(TracetuneWarning):
    """Some rollouts failed, were held up or could not be scored; the message says how many or why."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """A rollout that should be made: which example, under which policy, and its place in the step."""

    example: Example
    index: int
    split: str
    step: int
    policy: Policy


@dataclass(slots=True)
class Failures:
    """What went wrong in a set of rollouts: counted, and the first of each kind kept to be shown.

    Attributes:
        program_message: what the first of the programs' errors says.
        reward_message: what the first of the rewards' errors says.
    """

    programs: int = 0
    rewards: int = 0
    first_program: BaseException | None = None
    first_reward: BaseException | None = None
    program_message: str = ""
    reward_message: str = ""

    def program(self, error: BaseException, message: str) -> None:
        """Count a rollout that failed."""
        self.programs += 1
        if self.first_program is None:
            self.first_program, self.program_message = error, message

    def reward(self, error: BaseException, message: str) -> None:
        """Count a rollout that could not be scored."""
        self.rewards += 1
        if self.first_reward is None:
            self.first_reward, self.reward_message = error, message


class Batch:
    """The rollouts of one call of `run`: those that wait, those that are made, what went wrong."""

    def __init__(
        self,
        requests: Sequence[RolloutRequest],
        context: contextvars.Context,
        on_done: Callable[[Rollout], None] | None,
    ) -> None:
        self.requests = requests
        self.context = context  # carries the recording's scope into threads and loops
        self.waiting = deque(range(len(requests)))
        self.results: dict[int, Rollout] = {}
        self.failures = Failures()
        self._on_done = on_done

    def finish(self, place: int, rollout: Rollout) -> None:
        """Keep a rollout that has been made."""
        self.results[place] = rollout
        if self._on_done is not None:
            self._on_done(rollout)
