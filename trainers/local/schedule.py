"""The learning rate of a step: a warm-up, then a shape over the steps that remain.

It is a function of the step's number and of nothing else, so a checkpoint needs to keep
no more of it than that number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""The share of the learning rate that is left, by the share of the steps after the warm-up that is done."""


def rate_factor(step: int, *, shape: str, warmup_steps: int, total_steps: int | None) -> float:
    """What the learning rate is multiplied by in a step.

    Args:
        step: 1 for the first step.
        shape: a name in `SHAPES`.
        warmup_steps: the rate rises linearly over so many steps, and is whole at the last of them.
        total_steps: how many steps there are; "constant" needs none.

    Example:
        >>> [rate_factor(step, shape="linear", warmup_steps=2, total_steps=4) for step in (1, 2, 3, 4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if step <= warmup_steps:
        return step / warmup_steps
    if total_steps is None:
        return SHAPES["constant"](0.0)
    done = (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)
    return SHAPES[shape](min(done, 1.0))
