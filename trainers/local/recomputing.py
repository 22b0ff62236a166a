"""Gradient checkpointing: a layer keeps its input alone, and is computed again when gradients need the rest.

transformers' layers do so themselves while they are being trained. They are told here, one
by one, because training mode of the whole model would also turn on dropout of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tracetune.errors import InvalidInput


@contextmanager
def recomputed_layers(model: torch.nn.Module) -> Iterator[None]:
    """Inside, every layer of the model is recomputed in the backward pass.

    Raises:
        InvalidInput: if the model has no layers that can be.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InvalidInput("this model has no layers that can be computed again; turn gradient_checkpointing off")
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.training = True
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.gradient_checkpointing = False
            layer.training = mode
