"""The local trainer: mmGRPO on a LoRA adapter, in this process, with PyTorch."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracetune.errors import InvalidInput
from tracetune.trainers.base import Endpoint, WeightTrainer
from tracetune.trainers.local.checkpoint import TrainerState, load_checkpoint, model_fingerprint, save_checkpoint
from tracetune.trainers.local.forwards import Forward, forwards_of, read_tokens
from tracetune.trainers.local.lora import Adapter
from tracetune.trainers.local.loss import token_losses
from tracetune.trainers.local.members import chat_tokeniser, has_something_to_learn, trainable_members
from tracetune.trainers.local.report import StepSums
from tracetune.trainers.local.rows import cut_rows
from tracetune.trainers.local.schedule import rate_factor
from tracetune.trainers.local.settings import LocalSettings
from tracetune.trainers.local.sharing import cost_of, shares_prefixes
from tracetune.types import Capabilities, Environment, GroupBatch, Plan, StepReport


@dataclass(frozen=True, slots=True)
class _Anchor:
    """What the tokens of a forward are held against: where the step began, and the model without its adapter."""

    old_logprobs_T: Tensor
    reference_logprobs_T: Tensor | None


class LocalTrainer(WeightTrainer):
    """Trains a LoRA adapter on this machine.

    Everything follows from the settings and the batches: the same ones give the same
    weights, bit for bit, on the same machine with the same number of threads.

    Args:
        model: a Hugging Face id, a checkpoint's folder, a GGUF file, or a model with its
            tokenizer; such a model is changed in place.
        dtype: of the model's weights; the adapter's are always float32.
        device: where the model stands and learns.
        threads: of PyTorch; None keeps as many as it has now.
        settings: what `LocalSettings` has: `learning_rate`, `kl`, `lora_rank` and so on.

    Raises:
        InvalidInput: if a setting is unknown or cannot be used.
        ModelNotFound: if there is no model where `model` says.

    Example:
        >>> trainer = LocalTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", learning_rate=3e-4)  # doctest: +SKIP
        >>> trainer.step(store.groups(Grouping.paper())).grad_norm  # doctest: +SKIP
        0.41

    Reference:
        Multi-module GRPO (arXiv 2508.04660), Eqs. 7 to 9. The paper has a LoRA dropout of
        .05; here it is 0, so that members of a group can share what they have in common.
    """

    name = "local"
    capabilities = Capabilities(weights=True)

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        threads: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.settings = LocalSettings.of(settings)
        self._threads = threads or torch.get_num_threads()
        with _on_one_thread():
            if isinstance(model, tuple):
                base, self.tokenizer = model
            else:
                from tracetune.trainers.models import load_model

                base, self.tokenizer = load_model(model, dtype=dtype, device=device)
            self._cost = cost_of(base)
            self._fingerprint = model_fingerprint(dict(base.named_parameters()))
            self._share = self.settings.lora_dropout == 0.0 and shares_prefixes(base)
            self._adapter = Adapter(
                base,
                rank=self.settings.lora_rank,
                alpha=self.settings.lora_alpha,
                dropout=self.settings.lora_dropout,
                seed=self.settings.seed,
            )
        self._parameters = list(self._adapter.parameters.values())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=self.settings.learning_rate, weight_decay=0.0)
        self._warned = False

    @property
    def model(self) -> Any:
        """The model with its adapter."""
        return self._adapter.model

    def prepare(self, plan: Plan) -> None:
        """Let the schedule fall over the plan's steps, unless it was told otherwise."""
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            self.settings = self.settings.model_copy(update={"total_steps": plan.steps})

    def endpoint(self, env: Environment, version: str) -> Endpoint:
        """A server of the model as it learns, on this machine."""
        from tracetune.trainers.endpoint import LocalEndpoint

        return LocalEndpoint(
            self.model,
            self.tokenizer,
            name="policy",
            version=version,
            journal=env.journal,
            models=env.plan.models,
            forward=env.plan.upstream,
            threads=self._threads,
        )

    def step(self, batch: GroupBatch) -> StepReport:
        """Learn from a batch of groups: `epochs` updates, each over all of it.

        A member that cannot be learned from is left out, with its reason in the report.
        Where nothing can be learned, or a gradient is not finite, the weights stay as
        they are, to the bit.
        """
        started = time.perf_counter()
        if self.settings.schedule != "constant" and self.settings.total_steps is None:
            raise InvalidInput(f"the schedule {self.settings.schedule} falls over total_steps; give it to the trainer")
        torch.set_num_threads(self._threads)
        members, skipped = trainable_members(
            batch,
            loss=self.settings.loss,
            max_completion_length=self.settings.max_completion_length,
            vocabulary=self.model.config.vocab_size,
            longest=getattr(self.model.config, "max_position_embeddings", None),
            tokenise=chat_tokeniser(self.tokenizer),
        )
        if any(member.logprobs is None for member in members):
            self._warn_of_recomputed_logprobs()
        sums = StepSums()
        if has_something_to_learn(members, self.settings.kl):
            rows = cut_rows(members, cost=self._cost, budget=self.settings.token_budget, share=self._share)
            sums = self._learn(forwards_of(rows, self.settings.token_budget, self.model.device))
            if sums.updates < self.settings.epochs:
                skipped["not_finite"] += len(members)
        elif members:
            skipped["nothing_to_learn"] += len(members)
        self.steps_done += 1
        return sums.report(
            step=self.steps_done,
            used=len(members) if sums.updates else 0,
            tokens=sum(len(member.completion_ids) for member in members) if sums.updates else 0,
            seconds=time.perf_counter() - started,
            skipped=skipped,
        )

    def save(self, folder: Path) -> None:
        """Write adapter, optimiser, random states and settings into a folder, as safetensors and JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder, self._adapter, self._optimizer, self._state())

    def load(self, folder: Path) -> None:
        """Go on where `save` was called: the next step is bit-equal to the one that would have been.

        Raises:
            CheckpointError: if the folder is incomplete, or was written under other
                settings or for another model; nothing was changed.
        """
        self.steps_done = load_checkpoint(folder, self._adapter, self._optimizer, self._state())

    def _learn(self, forwards: Sequence[Forward]) -> StepSums:
        """Update the weights once an epoch, each time over all forwards; stop where a gradient is not finite."""
        sums = StepSums()
        anchors: dict[int, _Anchor] = {}
        # Dropout is the adapter's alone, so the mode matters only where it has some.
        self.model.train(self.settings.lora_dropout > 0.0)
        try:
            while sums.updates < self.settings.epochs:
                loss = sum(self._backward(forward, index, anchors, sums) for index, forward in enumerate(forwards))
                norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm))
                if not (math.isfinite(norm) and math.isfinite(loss)):
                    break
                self._set_learning_rate()
                self._optimizer.step()
                self._optimizer.zero_grad()
                sums.update(loss, norm)
        finally:
            self._optimizer.zero_grad()
            self.model.eval()
        return sums

    def _backward(self, forward: Forward, index: int, anchors: dict[int, _Anchor], sums: StepSums) -> float:
        """Add a forward's share of the gradient; gives its share of the loss."""
        readings = read_tokens(self.model, forward)
        if index not in anchors:
            # No update has been made yet: these are the weights that the step starts with.
            anchors[index] = self._anchor(forward, readings.logprobs_T.detach())
        losses = token_losses(
            readings.logprobs_T,
            anchors[index].old_logprobs_T,
            forward.advantages_T,
            anchors[index].reference_logprobs_T,
            clip=self.settings.clip,
            kl=self.settings.kl,
        )
        loss = (forward.weights_T * losses.loss_T).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sums.add(losses, readings.entropies_T)
        return loss.item()

    def _anchor(self, forward: Forward, present_logprobs_T: Tensor) -> _Anchor:
        known_T = forward.old_logprobs_T
        old_logprobs_T = torch.where(known_T.isnan(), present_logprobs_T, known_T)
        if self.settings.kl == 0.0:
            return _Anchor(old_logprobs_T, None)
        with torch.no_grad(), self._adapter.disabled():
            return _Anchor(old_logprobs_T, read_tokens(self.model, forward).logprobs_T)

    def _set_learning_rate(self) -> None:
        factor = rate_factor(
            self.steps_done + 1,
            shape=self.settings.schedule,
            warmup_steps=self.settings.warmup_steps,
            total_steps=self.settings.total_steps,
        )
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = self.settings.learning_rate * factor

    def _state(self) -> TrainerState:
        return TrainerState(self.steps_done, self.settings.model_dump(), self._fingerprint)

    def _warn_of_recomputed_logprobs(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                "some members have no log-probabilities of the policy that sampled them (text alone, greedy or "
                "truncated sampling); those of the present weights stand in, as if it had just sampled them",
                stacklevel=3,
            )


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Compute without torch's pool of threads, which it would keep for the calling thread.

    Steps are made in the endpoint's thread, and two pools on the same cores halve each
    other's speed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
