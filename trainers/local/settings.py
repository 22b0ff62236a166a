"""What a local trainer can be told, checked as it is told."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracetune.trainers.local.importance import Level
from tracetune.trainers.local.loss import LossName
from tracetune.trainers.settings import TrainerSettings


class LocalSettings(TrainerSettings):
    """How `LocalTrainer` learns; all of it stands in its checkpoints.

    Attributes:
        learning_rate: of AdamW, without weight decay, at its full height.
        schedule: "constant", "linear" or "cosine", after the warm-up.
        warmup_steps: steps in which the rate rises to its full height.
        total_steps: steps that "linear" and "cosine" fall over; `fit` takes the plan's.
        loss: "grpo", "bnpo", "dr_grpo", "dapo", "gspo" or "cispo".
        clip: ε, how far a ratio may fall below 1, and rise above it, before its gradient stops.
        clip_high: ε_h, how far it may rise, where that is not ε.
        kl: β, the weight of the penalty for leaving the model without its adapter.
        importance: "token" or "sequence" recomputes the log-probabilities of all members
            under the step's first weights, and weighs each token, or each completion, by how
            likely it is under those against whoever sampled it: where that is not known,
            the model without its adapter. None holds ratios against the recorded
            log-probabilities, or against the step's first weights where there are none, and
            weighs the tokens of teachers alone.
        importance_cap: no such weight is larger.
        distil: the weight of imitating a teacher's good completions, where nothing is
            known but their text; 0 leaves them out.
        adapter_per_module: each module learns an adapter of its own.
        max_completion_length: what dr_grpo divides by, in tokens.
        epochs: updates a step, each over the whole batch.
        max_grad_norm: longer gradients are scaled down to this norm.
        lora_rank: r of the adapter.
        lora_alpha: of the adapter, whose updates are scaled by alpha / r.
        lora_dropout: on the adapter's input; above 0, nothing is shared between members.
        gradient_checkpointing: what a layer computed is computed again when gradients need
            it, which takes less memory and more time.
        token_budget: tokens of one forward; memory follows it, the result does not.
        seed: of the adapters' first weights and of dropout.

    Example:
        >>> LocalSettings(kl=0.04).clip
        0.2
    """

    trainer: ClassVar[str] = "local"

    learning_rate: float = Field(default=1e-4, gt=0.0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    total_steps: int | None = Field(default=None, ge=1)
    loss: LossName = "grpo"
    clip: float = Field(default=0.2, gt=0.0)
    clip_high: float | None = Field(default=None, gt=0.0)
    kl: float = Field(default=0.0, ge=0.0)
    importance: Level | None = None
    importance_cap: float = Field(default=3.0, gt=0.0)
    distil: float = Field(default=1.0, ge=0.0)
    adapter_per_module: bool = False
    max_completion_length: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=1, ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    lora_rank: int = Field(default=16, ge=1)
    lora_alpha: int = Field(default=64, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    gradient_checkpointing: bool = False
    token_budget: int = Field(default=4096, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loss == "dr_grpo" and self.max_completion_length is None:
            raise ValueError("the loss dr_grpo divides by max_completion_length; give it, in tokens")
        return self
