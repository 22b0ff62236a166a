"""Trainers: they turn groups into the next policy."""

from __future__ import annotations

from tracetune.trainers.base import Endpoint, FinishedStep, WeightTrainer
from tracetune.trainers.registry import make_trainer, trainer_names

__all__ = ["Endpoint", "FinishedStep", "WeightTrainer", "make_trainer", "trainer_names"]
