"""A trainer's state as files: safetensors for tensors, JSON for the rest, no pickle.

A folder holds the adapter in peft's layout, or a folder of each module's, the optimisers'
moments, the random states and `trainer.json`, which names the settings and the model that
all of it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracetune.errors import CheckpointError
from tracetune.files import make_file, make_folder, write_text
from tracetune.trainers.local.learner import Learner
from tracetune.trainers.local.lora import FIRST, Adapters, adapter_name

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


def save_checkpoint(
    folder: Path, adapters: Adapters, learners: Mapping[str | None, Learner], state: TrainerState
) -> None:
    """Write all that a trainer needs to go on into an existing folder.

    Args:
        folder: where to.
        adapters: of the model.
        learners: by module; the one of None is of all modules together.
        state: how far they have come, and with what.
    """
    tensors = {"torch_random_state": torch.get_rng_state()}
    for module, learner in learners.items():
        adapter_folder = _adapter_folder(folder, module)
        make_folder(adapter_folder)
        adapters.save(adapter_folder, learner.name)
        for name, weight in learner.parameters.items():
            for moment, value in learner.optimizer.state.get(weight, {}).items():
                tensors[f"{name}.{moment}"] = value.contiguous()
    make_file(folder / _OPTIMIZER)
    save_file(tensors, folder / _OPTIMIZER)
    modules = sorted(module for module in learners if module is not None)
    record = {**asdict(state), "modules": modules, "python_random_state": random.getstate()}
    write_text(folder / _STATE, json.dumps(record, indent=2))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `save_checkpoint` wrote, read and found whole; nothing of it is in force yet.

    Attributes:
        weights: of each adapter, by module.
        moments: of the optimisers, by the names of weight and moment.
    """

    steps_done: int
    weights: Mapping[str | None, Mapping[str, Tensor]]
    moments: Mapping[str, Mapping[str, Tensor]]
    torch_random_state: Tensor
    python_random_state: tuple[Any, ...]

    def restore(self, adapters: Adapters, learners: Mapping[str | None, Learner]) -> None:
        """Put it in force, in learners of the same modules."""
        for module, learner in learners.items():
            adapters.put(learner.name, self.weights[module])
            learner.optimizer.state.clear()
            for name, weight in learner.parameters.items():
                for moment, value in self.moments.get(name, {}).items():
                    # AdamW keeps its count of steps on the CPU.
                    learner.optimizer.state[weight][moment] = value if moment == "step" else value.to(weight.device)
        torch.set_rng_state(self.torch_random_state)
        random.setstate(self.python_random_state)


def read_checkpoint(folder: Path, adapters: Adapters, present: TrainerState) -> Checkpoint:
    """Read what `save_checkpoint` wrote, and change nothing.

    Raises:
        CheckpointError: if the folder is incomplete, or was written under other settings
            or for another model.
    """
    try:
        record = json.loads((folder / _STATE).read_text())
        version, numbers, gauss = record.pop("python_random_state")
        modules = record.pop("modules")
        saved = TrainerState(**record)
        each = modules if saved.settings["adapter_per_module"] else [None]
        weights = {module: adapters.read(_adapter_folder(folder, module)) for module in each}
        tensors = load_file(folder / _OPTIMIZER)
        torch_random_state = tensors.pop("torch_random_state")
        names = [FIRST if module is None else adapter_name(module) for module in each]
        moments = _moments_of(tensors, {key for name in names for key in adapters.keys(name)})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no whole checkpoint of a local trainer ({error}); use another") from error
    if saved.model != present.model:
        raise CheckpointError(f"{folder} was written for another model; load the model that the run began with")
    for name in sorted(saved.settings.keys() | present.settings.keys()):
        old, new = saved.settings.get(name), present.settings.get(name)
        if old != new:
            raise CheckpointError(f"{folder} was written with {name}={old!r}, not {new!r}; use the run's own settings")
    return Checkpoint(saved.steps_done, weights, moments, torch_random_state, (version, tuple(numbers), gauss))


def _moments_of(tensors: Mapping[str, Tensor], weights: Collection[str]) -> dict[str, dict[str, Tensor]]:
    """The optimisers' state of each weight, from names like `<weight>.exp_avg`."""
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, moment = key.rpartition(".")
        if name not in weights:
            raise ValueError(f"{_OPTIMIZER} is of other weights")
        moments.setdefault(name, {})[moment] = value
    return moments


def _adapter_folder(folder: Path, module: str | None) -> Path:
    return folder if module is None else folder / "adapters" / adapter_name(module)
