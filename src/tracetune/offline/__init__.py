"""Training on what was recorded: groups out of the store, steps, and what they did to a held-out slice."""

from tracetune.offline.loop import OfflineResult, train

__all__ = ["OfflineResult", "train"]
