"""The online loop: rollouts, groups, a step, and again."""

from tracetune.online.loop import Result, optimize

__all__ = ["Result", "optimize"]
