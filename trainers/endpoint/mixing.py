"""Rows of several adapters in one forward pass, by peft, which only this file of the endpoint knows.

peft's LoRA layers take the name of each row's adapter; the base weights are then read
once for all rows, which is most of the cost of a token. peft's own way in, the
`adapter_names=` of a model's forward, hooks every layer anew for each pass, which costs as
much as the pass of a small model, and one pass an adapter reads the base weights once for
each. So the hooks stay on the layers here, and say nothing while no names are in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.other import AuxiliaryTrainingWrapper

# What peft calls the model beneath the adapters.
BASE = "__base__"


class AdapterMixing:
    """Tells the LoRA layers of one model which row of a batch has which adapter.

    Example:
        >>> mixing = AdapterMixing(model)  # doctest: +SKIP
        >>> mixing.attach()  # doctest: +SKIP
        >>> with mixing.rows(["plan", BASE]):  # doctest: +SKIP
        ...     model(input_ids=two_rows)
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._names: list[str] | None = None
        self._hooks: list[Any] = []

    def knows(self, name: str) -> bool:
        """Whether some layer has an adapter of that name."""
        return name == BASE or any(
            name in layer.lora_A or name in layer.lora_embedding_A
            for layer in self._model.modules()
            if isinstance(layer, LoraLayer)
        )

    def attach(self) -> None:
        """Let the layers hear of names, those included that have been added to the model since."""
        self.detach()
        self._hooks = [
            layer.register_forward_pre_hook(self._tell, with_kwargs=True)
            for layer in self._model.modules()
            if isinstance(layer, (LoraLayer, AuxiliaryTrainingWrapper))
        ]

    def detach(self) -> None:
        """Leave the layers as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """A forward pass inside is of rows with these adapters; None, of all rows: as the model is."""
        if None in names:
            assert not any(names)  # either every row has an adapter of its own, or none has
            yield
            return
        self._names = [name for name in names if name is not None]
        try:
            yield
        finally:
            self._names = None

    def _tell(self, layer: torch.nn.Module, inputs: Any, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        names = {} if self._names is None else {"adapter_names": self._names}
        return inputs, {**settings, **names}
