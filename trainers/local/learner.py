"""A learner: one adapter, its optimiser, and the passes of a step over it.

A step's tokens are held against where the step began. That is what the first pass finds,
before anything was updated; it is kept for the passes of later epochs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetune.trainers.local.forwards import Forward, forwards_of, read_tokens
from tracetune.trainers.local.importance import truncated_importance
from tracetune.trainers.local.lora import Adapters
from tracetune.trainers.local.loss import token_losses
from tracetune.trainers.local.recomputing import recomputed_layers
from tracetune.trainers.local.report import StepSums
from tracetune.trainers.local.rows import Row
from tracetune.trainers.local.settings import LocalSettings


@dataclass(frozen=True, slots=True)
class _Anchor:
    """What the tokens of a forward are held against: where the step began, and the model without its adapter.

    The latter is both the reference of the penalty and, where nobody knows who sampled a
    token, the one who did.
    """

    old_logprobs_T: Tensor
    importance_T: Tensor | None
    reference_logprobs_T: Tensor | None


class Learner:
    """One adapter and its optimiser.

    Args:
        adapters: the model's adapters.
        name: the one that learns here.
        settings: how.
    """

    def __init__(self, adapters: Adapters, name: str, settings: LocalSettings) -> None:
        self.name = name
        self._adapters = adapters
        self._settings = settings
        self.parameters = adapters.parameters(name)
        self.optimizer = torch.optim.AdamW(list(self.parameters.values()), lr=settings.learning_rate, weight_decay=0.0)

    def learn(self, rows: Sequence[Row], *, learning_rate: float) -> StepSums:
        """Update the weights once an epoch, each time over all rows; stop where a gradient is not finite."""
        sums = StepSums()
        anchors: dict[int, _Anchor] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._adapters.use(self.name)
        with self._training():
            while sums.updates < self._settings.epochs:
                this_pass = StepSums()
                forwards = forwards_of(rows, self._settings.token_budget, self._adapters.model.device)
                loss = sum(self._backward(forward, index, anchors, this_pass) for index, forward in enumerate(forwards))
                norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._settings.max_grad_norm))
                if not (math.isfinite(norm) and math.isfinite(loss)):
                    break
                self.optimizer.step()
                self.optimizer.zero_grad()
                this_pass.update(loss, norm)
                sums.include(this_pass)
        return sums

    @contextmanager
    def _training(self) -> Iterator[None]:
        """The model as it is while it learns; afterwards it is as it was, and no gradient is left."""
        model = self._adapters.model
        # Dropout is the adapter's alone, so the mode matters only where it has some.
        model.train(self._settings.lora_dropout > 0.0)
        recomputed = recomputed_layers(model) if self._settings.gradient_checkpointing else nullcontext()
        try:
            with recomputed:
                yield
        finally:
            self.optimizer.zero_grad()
            model.eval()

    def _backward(self, forward: Forward, index: int, anchors: dict[int, _Anchor], sums: StepSums) -> float:
        """Add a forward's share of the gradient; gives its share of the loss."""
        readings = read_tokens(self._adapters.model, forward)
        if index not in anchors:
            # No update has been made yet: these are the weights that the step starts with.
            anchors[index] = self._anchor(forward, readings.logprobs_T.detach())
        anchor = anchors[index]
        losses = token_losses(
            readings.logprobs_T,
            anchor.old_logprobs_T,
            forward.advantages_T,
            anchor.reference_logprobs_T,
            lengths=forward.lengths,
            loss=self._settings.loss,
            clip=self._settings.clip,
            clip_high=self._settings.clip_high,
            kl=self._settings.kl,
            importance_T=anchor.importance_T,
            imitated_T=forward.imitated_T,
        )
        loss = (forward.weights_T * losses.loss_T).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sums.add(losses, readings.entropies_T)
        return loss.item()

    def _anchor(self, forward: Forward, first_logprobs_T: Tensor) -> _Anchor:
        recorded_T, corrected_T = forward.recorded_logprobs_T, forward.corrected_T
        old_logprobs_T = torch.where(recorded_T.isnan() | corrected_T, first_logprobs_T, recorded_T)
        reference_T = None
        if self._settings.kl != 0.0 or (recorded_T.isnan() & corrected_T).any():
            with torch.no_grad(), self._adapters.disabled():
                reference_T = read_tokens(self._adapters.model, forward).logprobs_T
        importance_T = None
        if corrected_T.any():
            sampled_T = recorded_T if reference_T is None else torch.where(recorded_T.isnan(), reference_T, recorded_T)
            importance_T = truncated_importance(
                first_logprobs_T,
                torch.where(corrected_T, sampled_T, math.nan),
                forward.lengths,
                level=self._settings.importance or "token",
                cap=self._settings.importance_cap,
            )
        return _Anchor(old_logprobs_T, importance_T, reference_T if self._settings.kl != 0.0 else None)
