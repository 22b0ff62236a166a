"""What a trainer at a Tinker service can be told, checked as it is told."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracetune.trainers.local import LocalSettings
from tracetune.trainers.local.importance import Level
from tracetune.trainers.settings import TrainerSettings


class TinkerSettings(TrainerSettings):
    """How `TinkerTrainer` learns; all of it stands in its checkpoints.

    Attributes:
        loss: what a token contributes: "ppo" clips its gain, "cispo" the ratio that its
            gradient is weighed by, "importance_sampling" nothing.
        normalisation: what a token weighs, by the names of the local trainer's losses:
            "grpo", "bnpo", "dr_grpo" or "dapo".
        learning_rate: of AdamW, without weight decay, at its full height.
        schedule: "constant", "linear" or "cosine", after the warm-up.
        warmup_steps: steps in which the rate rises to its full height.
        total_steps: steps that "linear" and "cosine" fall over; `fit` takes the plan's.
        clip: ε, how far below 1 a token's ratio may move before it is clipped.
        clip_high: how far above 1; as far as below it where it is None.
        kl: β, what advantages lose for each nat that a token has gone from the base model.
        importance: "token" or "sequence" recomputes the log-probabilities of all members
            under the step's first weights, and weighs each token, or each completion, by how
            likely it is under those against whoever sampled it: where that is not known,
            the base model. None does so for teachers' alone.
        importance_cap: no such weight is larger.
        distil: the weight of imitating a teacher's good completions, where nothing is
            known but their text; 0 leaves them out.
        max_completion_length: what dr_grpo divides by, in tokens.
        max_grad_norm: longer gradients are scaled down to this norm.
        lora_rank: r of the adapter.
        seed: of the adapter's first weights.
        context_length: tokens that a prompt and its completion may have together.
        state_ttl_seconds: how long the service keeps the state of a checkpoint, an hour at
            least; None keeps it until it is deleted there.

    Example:
        >>> TinkerSettings(loss="cispo").normalisation
        'grpo'
    """

    trainer: ClassVar[str] = "tinker"

    loss: Literal["importance_sampling", "ppo", "cispo"] = "ppo"
    normalisation: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    learning_rate: float = Field(default=1e-4, gt=0.0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    total_steps: int | None = Field(default=None, ge=1)
    clip: float = Field(default=0.2, gt=0.0, le=1.0)
    clip_high: float | None = Field(default=None, gt=0.0)
    kl: float = Field(default=0.0, ge=0.0)
    importance: Level | None = None
    importance_cap: float = Field(default=3.0, gt=0.0)
    distil: float = Field(default=1.0, ge=0.0)
    max_completion_length: int | None = Field(default=None, ge=1)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    lora_rank: int = Field(default=16, ge=1)
    seed: int = Field(default=0, ge=0)
    context_length: int = Field(default=32_768, ge=2)
    state_ttl_seconds: int | None = Field(default=None, ge=3600)

    @property
    def of_members(self) -> LocalSettings:
        """What the local trainer would be told, so that its members are the same here."""
        return LocalSettings(
            loss=self.normalisation,
            max_completion_length=self.max_completion_length,
            importance=self.importance,
            importance_cap=self.importance_cap,
            distil=self.distil,
        )

    @property
    def thresholds(self) -> tuple[float, float]:
        """The ratios between which nothing is clipped."""
        return 1.0 - self.clip, 1.0 + (self.clip if self.clip_high is None else self.clip_high)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.normalisation == "dr_grpo" and self.max_completion_length is None:
            raise ValueError("the normalisation dr_grpo divides by max_completion_length; give it, in tokens")
        return self
