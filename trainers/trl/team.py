"""The processes that one training runs in: the first leads, the others follow.

The first runs the program, serves the policy and writes to the store. The others wait for
a lesson, take their share of its updates, and wait again. accelerate starts them and says
who is who; lessons go over a channel of their own, on which a process may wait for as
long as rollouts take.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed
from accelerate import PartialState

from tracetune.errors import TrainerError

T = TypeVar("T")

# Rollouts take as long as the program does. A process that ends closes its connections,
# and the others hear of that at once.
_PATIENCE = timedelta(days=365)
# Gloo's threads give the last message's tensors back to Python a moment after the message has come. One that
# meets an interpreter that is ending aborts the process, before Python 3.14.
_PARTING_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class _Result:
    """What the leader's work gave."""

    value: Any


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why the leader's work was not finished."""

    reason: str


class Team:
    """This process among all that train together; where it is the only one, all of this is idle.

    Attributes:
        size: how many processes there are.
        rank: which of them this is; 0 leads.
        follows: whether another process leads.
    """

    def __init__(self) -> None:
        state = PartialState()
        self.size = state.num_processes
        self.rank = state.process_index
        self.follows = self.rank > 0
        self._leads = False
        self._is_heard = True
        self._channel = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE) if self.size > 1 else None
        if self._channel is not None:
            _part_slowly()

    def together(self, work: Callable[[], T], learn: Callable[[Any], object]) -> T:
        """What the leader's work gives, in every process.

        Args:
            work: done by the leader alone; whenever it calls `lesson`, the others learn.
            learn: what the others do with a lesson.

        Raises:
            TrainerError: in the others, if the leader's work fails.
        """
        if self._channel is None or self._leads:
            return work()
        if self.follows:
            while not isinstance(message := self._say(None), _Result):
                learn(self._lesson(message))
            return message.value  # type: ignore[no-any-return]  # it came from the leader's work
        self._leads = True
        try:
            result = work()
            self._say(_Result(result))
        except BaseException as error:
            if self._is_heard:
                with suppress(TrainerError):  # of two failures the first one says more
                    self._say(_Failure(f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._leads = False
        return result

    def lesson(self, lesson: T | None) -> T:
        """The leader's lesson, in every process; the others need give none."""
        return self._lesson(lesson if self._channel is None else self._say(lesson))  # type: ignore[return-value]

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """What the processes do hand in hand: if it fails here, the others cannot hear of it.

        They are amid an exchange with this process. It fails as soon as this process ends,
        or after the half hour that an exchange may take.
        """
        try:
            yield
        except BaseException:
            self._is_heard = False
            raise

    def _say(self, message: object) -> object:
        """The leader's message, in every process."""
        said = [message]
        try:
            torch.distributed.broadcast_object_list(said, src=0, group=self._channel)
        except RuntimeError as error:
            who = "the first process" if self.follows else "another process"
            raise TrainerError(
                f"{who} of this training is gone ({error}); see what it printed, and start again"
            ) from error
        return said[0]

    def _lesson(self, message: object) -> object:
        if isinstance(message, _Failure):
            raise TrainerError(f"the first process of this training stopped ({message.reason}); see what it printed")
        return message


@cache
def _part_slowly() -> None:
    """Have the interpreter wait for gloo's threads before it ends; once a process."""
    atexit.register(time.sleep, _PARTING_SECONDS)
