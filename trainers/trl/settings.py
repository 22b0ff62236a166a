"""What a TRL trainer can be told: the local trainer's words, and which of TRL's trainers learns."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracetune.trainers.local.settings import LocalSettings

Method = Literal["grpo", "dpo", "kto", "sft"]


class TrlSettings(LocalSettings):
    """How `TrlTrainer` learns; all of it stands in its checkpoints.

    What is not named here means what it means in `LocalSettings`. The words of GRPO's loss
    (`loss`, `clip`, `clip_high`, `kl`, `importance`, `importance_cap`, `distil`,
    `max_completion_length`) say nothing to the other methods.

    Attributes:
        method: "grpo", all members of a group against each other; "dpo", its better
            members against its worse ones; "kto", what was better than its group and what
            was worse, each for itself; "sft", imitation of its best member.
        beta: of dpo and kto: how closely the adapter is held to the model without it.

    Example:
        >>> TrlSettings(method="dpo").beta
        0.1
    """

    trainer: ClassVar[str] = "trl"

    method: Method = "grpo"
    beta: float = Field(default=0.1, gt=0.0)

    @model_validator(mode="after")
    def _check_what_trl_does(self) -> Self:
        if self.adapter_per_module:
            raise ValueError("the trl trainer has one adapter for all modules; use the local trainer, or leave it out")
        if self.gradient_checkpointing:
            raise ValueError("the trl trainer keeps what its layers computed; lower token_budget to save memory")
        return self
