"""Asking again: with growing pauses, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tracetune.errors import TrainerError
from tracetune.trainers.jobs.service import Unavailable

T = TypeVar("T")

_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a service may be unavailable at a stretch.

    Attributes:
        limit: seconds after which it is given up.
        pause: seconds before asking again, doubled each time up to a minute.
    """

    limit: float
    pause: float = 1.0

    def ask(self, question: Callable[[], T], before_again: Callable[[], T | None] = lambda: None) -> T:
        """What a question gives, asked again while the service is unavailable.

        Args:
            question: raises `Unavailable` where it may be asked again.
            before_again: looks whether the question was heard after all; what it gives is the answer.

        Raises:
            TrainerError: if the limit is reached, or the question raises one.

        Example:
            >>> Patience(limit=60).ask(lambda: "an answer")
            'an answer'
        """
        deadline = time.monotonic() + self.limit
        pause = self.pause
        is_heard = False
        while True:
            try:
                if is_heard:
                    answer = before_again()
                    if answer is not None:
                        return answer
                return question()
            except Unavailable as error:
                wait = max(pause, error.retry_after or 0.0)
                if time.monotonic() + wait > deadline:
                    raise TrainerError(
                        f"{error}; it was asked for {self.limit:g} s: resume the run later, and the job goes on"
                    ) from error
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)
            is_heard = True
