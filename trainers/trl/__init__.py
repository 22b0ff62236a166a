"""Training through TRL: its trainers on our groups, in one process or in several."""

from __future__ import annotations

from tracetune.trainers.trl.settings import TrlSettings
from tracetune.trainers.trl.trainer import TrlTrainer

__all__ = ["TrlSettings", "TrlTrainer"]
