"""TRL's trainers, made to take one optimiser update when they are told to.

transformers' loop runs from a data set's beginning to its end, and makes its optimiser
anew whenever it is started. Here the loop is ours: a trainer is made once, and each
update is a number of micro-batches whose gradients add up, as that loop has it inside.
What a micro-batch contributes is left to the trainer's own `training_step`.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trl.trainer.utils import disable_dropout_in_model

from tracetune.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Update:
    """What came of one update, over all processes.

    Attributes:
        made: False where loss or gradient was not finite, and the weights stayed.
        sums: what the trainer counted while it went over the micro-batches.
    """

    loss: float
    grad_norm: float
    made: bool
    sums: tuple[float, ...]


class Stepwise:
    """Mixed into one of TRL's trainers, before it, this drives it from update to update."""

    sums: Tensor = torch.zeros(4, dtype=torch.float64)

    def begin(self: Any, *, dropout: bool) -> None:
        """Wrap model and optimiser for the processes there are, and take out what dropout the model has by itself.

        Raises:
            InvalidInput: if accelerate was told to cut the model into pieces.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InvalidInput(
                "accelerate is told to use FSDP or DeepSpeed, which leave no process a whole model to answer with; "
                "launch with plain data parallelism: accelerate launch --multi_gpu"
            )
        if not dropout:
            disable_dropout_in_model(self.model)
        self.model_wrapped, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        # Micro-batches are weighed before they come here, so nothing divides them once more.
        self.current_gradient_accumulation_steps = 1

    def _send_telemetry(self) -> None:
        """TRL tells its makers of each training; nobody asked for that here."""

    def update(self: Any, micro_batches: Sequence[Any], learning_rate: float, max_grad_norm: float) -> Update:
        """Take one update of the optimiser, over the micro-batches of all processes.

        Every process gives equally many.
        """
        accelerator, optimizer = self.accelerator, self.optimizer
        self.sums = torch.zeros_like(Stepwise.sums)
        try:
            loss = sum(self._backward(inputs, last=inputs is micro_batches[-1]) for inputs in micro_batches)
            sums = torch.cat([torch.tensor([loss / accelerator.num_processes], dtype=torch.float64), self.sums])
            total, *counted = accelerator.reduce(sums.float().to(accelerator.device), reduction="sum").tolist()
            norm = float(accelerator.clip_grad_norm_(self.model_wrapped.parameters(), max_grad_norm))
            made = math.isfinite(norm) and math.isfinite(total)
            if made:
                for parameters in optimizer.param_groups:
                    parameters["lr"] = learning_rate
                optimizer.step()
        finally:
            optimizer.zero_grad()
            self.model.eval()
            # TRL's own figures pile up, and nobody asks for them.
            self._metrics["train"].clear()
        return Update(total, norm, made, tuple(counted))

    def _backward(self: Any, inputs: Any, *, last: bool) -> float:
        """Add a micro-batch's gradient; processes exchange theirs with the last one."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        with nullcontext() if last else self.accelerator.no_sync(self.model_wrapped):
            return float(self.training_step(self.model_wrapped, inputs, None))


@contextmanager
def made_quietly() -> Iterator[None]:
    """Let one of TRL's trainers be made without a trace: it seeds every generator there is, a program's own too."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with old_names_accepted():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def old_names_accepted() -> Iterator[None]:
    """TRL speaks of gradient checkpointing by names that transformers is giving up, which nobody here can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        yield
