"""Executions and their numbers: which of a module's executions each is, and whether they overlap."""

from __future__ import annotations

import itertools
import os
import threading

from tracetune.tracer import sources

# Guards the ordinals of every rollout for a few instructions at a time. Held across a
# fork, so that a child never inherits it locked by a thread that it does not have.
# Re-entrant: the garbage collector may end an abandoned generator while it is held.
ordinals_lock = threading.RLock()
os.register_at_fork(
    before=ordinals_lock.acquire, after_in_parent=ordinals_lock.release, after_in_child=ordinals_lock.release
)


class Execution:
    """One execution of a program, module or tool, while it lasts.

    Attributes:
        span_id: of its span, in hexadecimal.
        turns: gives the ordinals of its LM calls.
        is_unordered: it overlapped another execution of its module and key, or may have, in another process.
    """

    __slots__ = ("_lane", "invocation", "is_unordered", "key", "module", "parent", "span_id", "turns")

    def __init__(self, module: str, key: str, parent: Execution | None) -> None:
        self.module = module
        self.key = key
        self.parent = parent
        self.span_id = ""
        self.invocation = 0
        self.is_unordered = False
        self.turns = itertools.count()
        self._lane: _Lane | None = None

    def enter(self, executions: Executions) -> None:
        """Take its number among those of its module and key, and notice those that run beside it."""
        with ordinals_lock:
            lane = self._lane = executions.lane(self.module, self.key)
            self.invocation = lane.count
            lane.count += 1
            # Other children of the same fork count from the same number on.
            self.is_unordered = not self.key and executions.generation != sources.generation
            for other in lane.running:
                if not self._is_inside(other):
                    other.is_unordered = self.is_unordered = True
            lane.running.append(self)

    def leave(self) -> None:
        """It has ended."""
        lane, self._lane = self._lane, None
        if lane is not None:
            with ordinals_lock:
                lane.running.remove(self)

    def _is_inside(self, other: Execution) -> bool:
        """Whether the other execution called this one, at any depth: recursion has an order."""
        ancestor = self.parent
        while ancestor is not None and ancestor is not other:
            ancestor = ancestor.parent
        return ancestor is other


class _Lane:
    """The executions of one module and key in one rollout: how many there were, and which are running."""

    __slots__ = ("count", "running")

    def __init__(self) -> None:
        self.count = 0
        self.running: list[Execution] = []


class Executions:
    """The executions of one rollout.

    Attributes:
        turns: gives the ordinals of LM calls outside any execution.
        generation: the process that they began in.
    """

    __slots__ = ("_lanes", "generation", "turns")

    def __init__(self) -> None:
        self.generation = sources.generation
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self.turns = itertools.count()

    def lane(self, module: str, key: str) -> _Lane:
        """Those of one module and key; the caller holds the lock."""
        lane = self._lanes.get((module, key))
        if lane is None:
            lane = self._lanes[module, key] = _Lane()
        return lane
