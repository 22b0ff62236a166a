"""The adapter: LoRA on every linear layer but the output's, by peft, which only this file knows."""

from __future__ import annotations

import json
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracetune.errors import InvalidInput

_WEIGHTS = "adapter_model.safetensors"


class Adapter:
    """A model with a LoRA adapter on it, both as one.

    Args:
        model: a transformers causal language model; it is changed in place.
        rank: r, the inner dimension of each update.
        alpha: an update is scaled by alpha / rank.
        dropout: on the adapter's input, while training.
        seed: of the adapter's first weights.

    Raises:
        InvalidInput: if the model has an adapter already.

    Reference:
        LoRA (arXiv 2106.09685); r 16 and alpha 64 as in mmGRPO's experiments.
    """

    def __init__(self, model: Any, *, rank: int, alpha: int, dropout: float, seed: int) -> None:
        if hasattr(model, "peft_config"):
            raise InvalidInput("the model has an adapter already, of another trainer perhaps; load it afresh")
        settings = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # peft asks the model something under a name that transformers has given up.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            torch.manual_seed(seed)
            self.model: Any = peft.get_peft_model(model, settings)
        self.model.eval()

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The weights that learn, by name, in a fixed order."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    @property
    def frozen(self) -> dict[str, Tensor]:
        """The weights of the model beneath, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if not weight.requires_grad}

    def disabled(self) -> AbstractContextManager[None]:
        """The model as it was without the adapter: the reference."""
        context: AbstractContextManager[None] = self.model.disable_adapter()
        return context

    def save(self, folder: Path) -> None:
        """Write it in peft's own layout, so that `PeftModel.from_pretrained(base, folder)` reads it too."""
        weights = peft.get_peft_model_state_dict(self.model)
        save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, folder / _WEIGHTS)
        settings = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in self.model.peft_config["default"].to_dict().items()
        }
        (folder / "adapter_config.json").write_text(json.dumps({**settings, "inference_mode": True}, indent=2))

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The weights that `save` wrote, without putting them in force.

        Raises:
            ValueError: if they are not this adapter's.
        """
        weights = load_file(folder / _WEIGHTS)
        mine = peft.get_peft_model_state_dict(self.model)
        if {name: weight.shape for name, weight in weights.items()} != {n: w.shape for n, w in mine.items()}:
            raise ValueError(f"{_WEIGHTS} holds the weights of another adapter")
        return weights

    def put(self, weights: dict[str, Tensor]) -> None:
        """Put weights that were read in force."""
        peft.set_peft_model_state_dict(self.model, weights)
