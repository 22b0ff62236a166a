"""Where ids and times come from.

Ids are drawn from a generator of our own, seeded by the operating system and seeded
anew in a forked child, so that `random.seed` in a program or a fork repeats none.
`tracetune.testing.deterministic` puts counters in their place.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_random = random.Random()  # noqa: S311  ids need to be distinct, not secret
_bits: Callable[[int], int] = _random.getrandbits
_clock: Callable[[], int] = time.time_ns

# How many forks lie between this process and the one that imported us: what began in one process is not
# another's to end.
generation = 0


def _in_child() -> None:
    global generation
    generation += 1
    _random.seed()  # a child that kept its parent's state would draw its parent's next ids


os.register_at_fork(after_in_child=_in_child)


def now() -> int:
    """The time in nanoseconds since the epoch."""
    return _clock()


def new_id() -> str:
    """A fresh id for a rollout or a record: 32 hexadecimal digits."""
    return f"{_bits(128):032x}"


def span_id() -> int:
    """A fresh 64-bit id that is not zero."""
    return _bits(64) or 1


def trace_id() -> int:
    """A fresh 128-bit id that is not zero."""
    return _bits(128) or 1


@contextmanager
def replaced(bits: Callable[[int], int], clock: Callable[[], int]) -> Iterator[None]:
    """Draw ids and times from these functions inside the block."""
    global _bits, _clock
    before = _bits, _clock
    _bits, _clock = bits, clock
    try:
        yield
    finally:
        _bits, _clock = before
