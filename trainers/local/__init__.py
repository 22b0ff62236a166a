"""Training on this machine: mmGRPO on a LoRA adapter with PyTorch, prefixes computed once."""

from __future__ import annotations

from tracetune.trainers.local.settings import LocalSettings
from tracetune.trainers.local.trainer import LocalTrainer

__all__ = ["LocalSettings", "LocalTrainer"]
