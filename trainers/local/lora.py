"""Adapters: LoRA on every linear layer but the output's, by peft, which only this file knows."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import Linear, LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracetune.errors import InvalidInput
from tracetune.files import make_file, write_text

_WEIGHTS = "adapter_model.safetensors"
FIRST = "default"
"""The adapter that a model has from the beginning."""


class Adapters:
    """A model with LoRA adapters on it, all as one.

    It has one from the beginning, called `default`, which all modules share. Where each
    module learns its own that one stays as it was made, which is the same as none.

    Args:
        model: a transformers causal language model; it is changed in place.
        rank: r, the inner dimension of each update.
        alpha: an update is scaled by alpha / rank.
        dropout: on an adapter's input, while training.
        seed: of the adapters' first weights.

    Raises:
        InvalidInput: if the model has an adapter already.

    Reference:
        LoRA (arXiv 2106.09685); r 16 and alpha 64 as in mmGRPO's experiments.
    """

    def __init__(self, model: Any, *, rank: int, alpha: int, dropout: float, seed: int) -> None:
        if hasattr(model, "peft_config"):
            raise InvalidInput("the model has an adapter already, of another trainer perhaps; load it afresh")
        self._seed = seed
        self._settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
        with _first_weights(seed):
            self.model: Any = peft.get_peft_model(model, self._peft_settings())
        self.model.eval()

    def add(self, module: str) -> str:
        """Give a module an adapter; its first weights follow from seed and module, whatever was added before.

        Returns:
            The adapter's name.
        """
        name = adapter_name(module)
        if name not in self.model.peft_config:
            with _first_weights(derived_seed(self._seed, module)):
                self.model.add_adapter(name, self._peft_settings())
            self.model.eval()
        return name

    def remove(self, name: str) -> None:
        """Take an adapter away."""
        self.use(FIRST)
        self.model.delete_adapter(name)

    def use(self, name: str) -> None:
        """Let this adapter's weights, and no other's, be in force and learn."""
        self.model.set_adapter(name)

    def keys(self, name: str) -> list[str]:
        """What the weights of an adapter of that name are called, whether the model has it or not."""
        return [key.replace(f".{FIRST}.", f".{name}.") for key in self.parameters(FIRST)]

    def parameters(self, name: str) -> dict[str, torch.nn.Parameter]:
        """The weights of one adapter, by name, in a fixed order."""
        return {key: weight for key, weight in self.model.named_parameters() if f".{name}." in key and ".lora_" in key}

    def disabled(self) -> AbstractContextManager[None]:
        """The model as it was without any adapter: the reference."""
        context: AbstractContextManager[None] = self.model.disable_adapter()
        return context

    def save(self, folder: Path, name: str) -> None:
        """Write one in peft's own layout, so that `PeftModel.from_pretrained(base, folder)` reads it too."""
        weights = {key.replace(f".{name}.", "."): weight for key, weight in self.parameters(name).items()}
        make_file(folder / _WEIGHTS)
        save_file({key: weight.detach().contiguous() for key, weight in weights.items()}, folder / _WEIGHTS)
        settings = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in self.model.peft_config[name].to_dict().items()
        }
        write_text(folder / "adapter_config.json", json.dumps({**settings, "inference_mode": True}, indent=2))

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The weights that `save` wrote, without putting them in force.

        Raises:
            ValueError: if they are not those of an adapter of this model.
        """
        weights = load_file(folder / _WEIGHTS)
        mine = {key.replace(f".{FIRST}.", "."): weight.shape for key, weight in self.parameters(FIRST).items()}
        if {key: weight.shape for key, weight in weights.items()} != mine:
            raise ValueError(f"{_WEIGHTS} holds the weights of another adapter")
        return weights

    def put(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Put weights that were read in force."""
        with torch.no_grad():
            for key, weight in self.parameters(name).items():
                weight.copy_(weights[key.replace(f".{name}.", ".")])

    def merged(self, name: str) -> dict[str, Tensor]:
        """The weights of the plain model that this one is with an adapter, by the plain model's names.

        Raises:
            InvalidInput: if a layer is quantised: an update would be lost in its rounding.
        """
        base = self.model.get_base_model()
        merged = {
            key.replace(".base_layer.", "."): weight for key, weight in base.state_dict().items() if ".lora_" not in key
        }
        with torch.no_grad():
            for key, layer in base.named_modules():
                if isinstance(layer, LoraLayer):
                    if not isinstance(layer, Linear):
                        raise InvalidInput(
                            f"{key} is no plain linear layer, a quantised one perhaps; keep its adapter apart"
                        )
                    weight: Any = layer.get_base_layer().weight
                    merged[f"{key}.weight"] = (weight + layer.get_delta_weight(name)).to(weight.dtype)
        return merged

    def _peft_settings(self) -> peft.LoraConfig:
        return peft.LoraConfig(**self._settings, target_modules="all-linear", task_type="CAUSAL_LM")


def adapter_name(module: str) -> str:
    """What a module's adapter is called: the module's name as far as a folder's may have it, and a hash of it.

    Example:
        >>> adapter_name("hop")
        'hop-87a0acae'
    """
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", module)[:40]
    return f"{readable}-{hashlib.sha256(module.encode()).hexdigest()[:8]}"


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose: it does not depend on what random numbers were used for before.

    Example:
        >>> derived_seed(0, "hop") == derived_seed(0, "hop") != derived_seed(0, "answer")
        True
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")


@contextmanager
def _first_weights(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks the model something under a name that transformers has given up.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        torch.manual_seed(seed)
        yield
