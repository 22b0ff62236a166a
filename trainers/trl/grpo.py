"""TRL's GRPOTrainer on our groups: our advantages and recorded log-probabilities, its loss.

TRL normalises a loss over what happens to lie in a micro-batch. mmGRPO's mean within a
group and over groups of unequal size is a weighted sum over tokens, whose weights follow
from counts alone. TRL has such a sum: its `dapo` divides the sum of masked losses by a
number that it is given, and takes a second mask for the tokens of tools. Those masks
carry our weights here, so a step may be cut anywhere and dealt out to any number of
processes, and comes to the same gradient.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from tracetune.trainers.local.importance import truncated_importance
from tracetune.trainers.local.loss import LOSSES, token_losses
from tracetune.trainers.local.members import TrainableMember
from tracetune.trainers.trl.rows import MicroBatch, Tensors, dealt_out, micro_batches, tensors_of
from tracetune.trainers.trl.settings import TrlSettings
from tracetune.trainers.trl.stepwise import Stepwise, made_quietly


class GroupRelative(Stepwise, GRPOTrainer):  # type: ignore[misc]  # trl leaves its classes untyped
    """GRPOTrainer, fed with groups.

    Its generation, its rewards, its sampler and its data loader are never asked.

    Args:
        model: with the adapter that learns.
        optimizer: over the adapter's weights.
        use_cpu: stay on the CPU even where there is something faster.
    """

    def __init__(
        self, model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, settings: TrlSettings, *, use_cpu: bool
    ) -> None:
        self._forward = model.get_base_model().forward
        with made_quietly():
            super().__init__(
                model=model,
                reward_funcs=_no_reward,
                args=GRPOConfig(
                    output_dir=tempfile.gettempdir(),
                    # The reference is read here, so that TRL keeps none of its own.
                    beta=0.0,
                    epsilon=settings.clip,
                    use_bias_correction_kl=False,
                    gradient_checkpointing=False,
                    bf16=False,
                    use_cpu=use_cpu,
                    seed=settings.seed,
                    # TRL checks that its own batches hold whole groups; it makes none.
                    num_generations=2,
                    per_device_train_batch_size=2,
                    report_to="none",
                ),
                train_dataset=Dataset.from_list([{"prompt": ""}] * 2),
                processing_class=tokenizer,
                optimizers=(optimizer, None),
            )
        self.beta = settings.kl
        self._temperature = 1.0  # that GRPOConfig has by default
        self._settings = settings
        self._ratio = LOSSES[settings.loss].ratio
        high = settings.clip if settings.clip_high is None else settings.clip_high
        # Our weights take the place of what else tells the losses apart. In cispo the
        # whole bound is called epsilon_high.
        self._loss = ("cispo", 1.0 + high) if LOSSES[settings.loss].gradient == "weighed" else ("dapo", high)
        self._readings: tuple[Tensor, Tensor] = torch.zeros(0), torch.zeros(0)
        self.begin(dropout=settings.lora_dropout > 0.0)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> Any:
        """The micro-batch as it is: its completions were sampled and judged elsewhere."""
        return Trainer._prepare_inputs(self, inputs)

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any:
        """TRL's, kept for the step's figures."""
        read = super()._get_per_token_logps_and_entropies(*arguments, **named)
        self._readings = read[0].detach(), read[1].detach()
        return read

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """TRL's, after which the micro-batch is counted."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._count(inputs)
        return loss

    def lesson(self, members: Sequence[TrainableMember]) -> list[dict[str, Any]]:
        """This process's micro-batches, held against the weights as they are now."""
        processes = self.accelerator.num_processes
        mine = dealt_out(
            micro_batches(members, self._settings.token_budget * processes), processes, self.accelerator.process_index
        )
        # TRL divides by 1 where the weights of a row add up to less, so none is below 1.
        unit = 1.0 / min(member.weight for member in members)
        self.model.eval()
        return [self._inputs_of(batch, unit) for batch in mine]

    def _inputs_of(self, batch: MicroBatch, unit: float) -> dict[str, Any]:
        """A micro-batch for `_compute_loss`, whose sum is divided by `num_items_in_batch`."""
        tensors = tensors_of(batch, self.accelerator.device)
        is_imitated, temperature = batch.kind
        inputs = {
            "prompt_ids": tensors.prompt_ids_BP,
            "prompt_mask": torch.ones_like(tensors.prompt_ids_BP),
            "completion_ids": tensors.completion_ids_BT,
            "completion_mask": tensors.present_BT,
            "tool_mask": tensors.weights_BT * unit,
            "num_items_in_batch": torch.tensor(unit, device=tensors.weights_BT.device),
            "advantages": tensors.advantages_B[:, None].expand_as(tensors.recorded_BT),
            "old_per_token_logps": tensors.recorded_BT,
            "learned": tensors.learned_BT,
            "temperature": temperature,
            # Without an old log-probability TRL has the present one, and then cispo's loss is -A log p.
            "loss": ("cispo", 1.0) if is_imitated else self._loss,
        }
        unknown_BT = tensors.recorded_BT.isnan()
        reference_BT = None
        if self.beta != 0.0 or (unknown_BT & tensors.corrected_BT).any():
            with self.model.disable_adapter():
                reference_BT = self._logprobs(inputs)
        if is_imitated:
            inputs["old_per_token_logps"] = None
        elif unknown_BT.any() or tensors.corrected_BT.any():
            self._hold_against_present(inputs, tensors, reference_BT)
        if self.beta != 0.0:
            inputs["ref_per_token_logps"] = reference_BT
        return inputs

    def _hold_against_present(self, inputs: dict[str, Any], tensors: Tensors, reference_BT: Tensor | None) -> None:
        """Put the log-probabilities of the present weights, which the step begins with, where others do not serve.

        The importance of a token multiplies its advantage: what the loss makes of that is
        proportional to it.
        """
        learned_BT, corrected_BT, recorded_BT = tensors.learned_BT, tensors.corrected_BT, tensors.recorded_BT
        present_BT = self._logprobs(inputs)
        inputs["old_per_token_logps"] = torch.where(recorded_BT.isnan() | corrected_BT, present_BT, recorded_BT)
        if corrected_BT.any():
            if reference_BT is not None:  # nobody knows who sampled some of them
                recorded_BT = torch.where(recorded_BT.isnan(), reference_BT, recorded_BT)
            importance_BT = torch.ones_like(recorded_BT)
            importance_BT[learned_BT] = truncated_importance(
                present_BT[learned_BT],
                torch.where(corrected_BT, recorded_BT, math.nan)[learned_BT],
                [length for length in learned_BT.sum(dim=1).tolist() if length],
                level=self._settings.importance or "token",
                cap=self._settings.importance_cap,
            )
            inputs["advantages"] = inputs["advantages"] * importance_BT

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL's, of the micro-batch's kind and at the temperature that it was sampled at."""
        self._set_temperature(inputs["temperature"])
        self.loss_type, self.epsilon_high = inputs["loss"]
        self.importance_sampling_level = "sequence" if self._ratio == "sequence" else "token"
        return super()._compute_loss(model, inputs)

    @torch.no_grad()
    def _logprobs(self, inputs: dict[str, Any]) -> Tensor:
        self._set_temperature(inputs["temperature"])
        read: tuple[Tensor, Any, Any] = super()._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
        )
        return read[0]

    def _set_temperature(self, temperature: float) -> None:
        """Have TRL divide logits by another number: it is part of a forward that TRL puts in the model's place."""
        if temperature != self._temperature:
            base = self.model.get_base_model()
            base.forward = self._forward
            add_fused_lm_head(base, temperature=temperature, outputs=("log_probs", "entropy"))
            self._temperature = temperature

    def _count(self, inputs: dict[str, Any]) -> None:
        """Add the micro-batch's KL, clipped tokens, entropy and tokens to the update's."""
        logprobs_BT, entropies_BT = self._readings
        learned_BT, old_BT = inputs["learned"], inputs["old_per_token_logps"]
        logprobs_T, entropies_T = logprobs_BT[learned_BT], entropies_BT[learned_BT]
        reference_BT = inputs.get("ref_per_token_logps")
        losses = token_losses(
            logprobs_T,
            logprobs_T if old_BT is None else old_BT[learned_BT],
            inputs["advantages"][learned_BT],
            None if reference_BT is None else reference_BT[learned_BT],
            lengths=[length for length in learned_BT.sum(dim=1).tolist() if length],
            loss=self._settings.loss,
            clip=self._settings.clip,
            clip_high=self._settings.clip_high,
        )
        kl = torch.zeros(()) if losses.kl_T is None else losses.kl_T.sum()
        counted = [kl, losses.clipped_T.sum(), entropies_T.sum(), torch.tensor(len(logprobs_T))]
        self.sums += torch.tensor([float(number) for number in counted], dtype=torch.float64)


def _no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    raise AssertionError("rewards are given by the groups")
