"""Sampling: which rollouts are recorded, decided for each as a whole.

The decision is a hash of the rollout's id, so every thread and every process that knows
the id comes to the same one, and a larger fraction keeps all that a smaller one kept.
"""

from __future__ import annotations

import hashlib
import math

from tracetune.errors import InvalidInput


def checked(fraction: float) -> float:
    """The fraction, if it is one.

    Raises:
        InvalidInput: if it is no number from 0 to 1.
    """
    is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if not is_number or math.isnan(fraction) or not 0 <= fraction <= 1:
        raise InvalidInput(f"sample is the fraction of rollouts to record, a number from 0 to 1, not {fraction!r:.80}")
    return float(fraction)


def is_sampled(rollout_id: str, fraction: float) -> bool:
    """Whether a rollout is recorded where this fraction of them is.

    Example:
        >>> [is_sampled("r1", fraction) for fraction in (0.0, 1.0)]
        [False, True]
    """
    if fraction >= 1:
        return True
    digest = hashlib.blake2b(rollout_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
