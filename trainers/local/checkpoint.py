"""A trainer's state as files: safetensors for tensors, JSON for the rest, no pickle.

A folder holds the adapter in peft's layout, the optimiser's moments, the random states
and `trainer.json`, which names the settings and the model that all of it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracetune.errors import CheckpointError
from tracetune.trainers.local.lora import Adapter

_STATE = "trainer.json"
_OPTIMIZER = "optimizer.safetensors"
_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class TrainerState:
    """What a checkpoint belongs to, and how far it had come.

    Attributes:
        model: the fingerprint of the model beneath the adapter.
    """

    steps_done: int
    settings: Mapping[str, Any]
    model: str


def model_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """A hash of a model's names, shapes and evenly spaced values: another model has another."""
    digest = hashlib.sha256()
    for name, weight in weights.items():
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // _SAMPLES)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def save_checkpoint(folder: Path, adapter: Adapter, optimizer: torch.optim.Optimizer, state: TrainerState) -> None:
    """Write all that a trainer needs to go on into an existing folder."""
    adapter.save(folder)
    tensors = {
        f"{name}.{moment}": value.contiguous()
        for name, weight in adapter.parameters.items()
        for moment, value in optimizer.state.get(weight, {}).items()
    }
    tensors["torch_random_state"] = torch.get_rng_state()
    save_file(tensors, folder / _OPTIMIZER)
    record = {**asdict(state), "python_random_state": random.getstate()}
    (folder / _STATE).write_text(json.dumps(record, indent=2))


def load_checkpoint(folder: Path, adapter: Adapter, optimizer: torch.optim.Optimizer, present: TrainerState) -> int:
    """Put back what `save_checkpoint` wrote; nothing is changed unless all of it can be.

    Returns:
        How many steps had been done.

    Raises:
        CheckpointError: if the folder is incomplete, or was written under other settings
            or for another model.
    """
    try:
        record = json.loads((folder / _STATE).read_text())
        version, numbers, gauss = record.pop("python_random_state")
        saved = TrainerState(**record)
        weights = adapter.read(folder)
        tensors = load_file(folder / _OPTIMIZER)
        torch_random_state = tensors.pop("torch_random_state")
        moments = _moments_of(tensors, adapter)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint of a local trainer ({error}); use another") from error
    if saved.model != present.model:
        raise CheckpointError(f"{folder} was written for another model; load the model that the run began with")
    for name in sorted(saved.settings.keys() | present.settings.keys()):
        old, new = saved.settings.get(name), present.settings.get(name)
        if old != new:
            raise CheckpointError(f"{folder} was written with {name}={old!r}, not {new!r}; use the run's own settings")
    adapter.put(weights)
    optimizer.state.clear()
    optimizer.state.update(moments)
    torch.set_rng_state(torch_random_state)
    random.setstate((version, tuple(numbers), gauss))
    return saved.steps_done


def _moments_of(tensors: Mapping[str, Tensor], adapter: Adapter) -> dict[Tensor, dict[str, Tensor]]:
    """The optimiser's state of each weight, from names like `<weight>.exp_avg`."""
    moments: dict[Tensor, dict[str, Tensor]] = {}
    parameters = adapter.parameters
    for key, value in tensors.items():
        name, _, moment = key.rpartition(".")
        weight = parameters[name]
        # AdamW keeps its count of steps on the CPU.
        moments.setdefault(weight, {})[moment] = value if moment == "step" else value.to(weight.device)
    return moments
