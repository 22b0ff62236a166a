"""Trainers: they turn groups into the next policy."""

from __future__ import annotations

from tracetune.trainers.base import Endpoint, WeightTrainer
from tracetune.trainers.registry import make_trainer, trainer_names

__all__ = ["Endpoint", "WeightTrainer", "make_trainer", "trainer_names"]
