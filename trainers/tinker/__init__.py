"""Training at a service shaped like Tinker: the gradients are computed there, what they are of is said here."""

from __future__ import annotations

from tracetune.trainers.tinker.settings import TinkerSettings
from tracetune.trainers.tinker.trainer import TinkerTrainer

__all__ = ["TinkerSettings", "TinkerTrainer"]
