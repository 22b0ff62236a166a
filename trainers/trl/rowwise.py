"""TRL's DPO, KTO and SFT trainers, fed row by row with tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from tracetune.trainers.trl.lessons import Row
from tracetune.trainers.trl.settings import TrlSettings
from tracetune.trainers.trl.stepwise import Stepwise, made_quietly, old_names_accepted

# Their constructors want a data set. It is tokenised, and never read.
_PLACEHOLDERS = {
    "dpo": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "kto": {"prompt": "a", "completion": "b", "label": True},
    "sft": {"prompt": "a", "completion": "b"},
}


class _Rowwise(Stepwise):
    """A micro-batch is a number of rows, and TRL's loss their mean; `share` is what that weighs in the update."""

    def lesson(self: Any, rows: Sequence[Row]) -> list[tuple[float, Any]]:
        """This process's micro-batches, each with its share; every process has equally many, of equally many rows.

        Rows that do not come out even are taken by some processes, while the others go
        over one of them for no share.
        """
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        ordered = sorted(rows, key=self.length)
        even = len(rows) - len(rows) % processes
        batches: list[list[Row]] = []
        for begin in range(0, even, processes):
            longest = self.length(ordered[begin + processes - 1])
            if not batches or longest * (len(batches[-1]) + 1) > self.budget:
                batches.append([])
            batches[-1].append(ordered[begin + rank])
        weighed = [(self.weight(batch), batch) for batch in batches]
        if even < len(rows):
            own = ordered[even + rank : even + rank + 1]
            weighed.append((self.weight(own), own or ordered[even : even + 1]))
        total = self.weight(rows)
        return [(weight * processes / total, self.data_collator(batch)) for weight, batch in weighed]

    def training_step(self: Any, model: Any, inputs: tuple[float, Any], num_items_in_batch: Any = None) -> Any:
        """TRL's, of a micro-batch with its share."""
        self.share, rows = inputs
        # Some of the losses write into what they are given, and an epoch later it is given again.
        with old_names_accepted():
            return super().training_step(model, dict(rows), num_items_in_batch)  # type: ignore[misc]  # mixed in

    def compute_loss(self: Any, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        """TRL's, by its share."""
        return self.share * super().compute_loss(model, inputs, *arguments, **named)  # type: ignore[misc]  # mixed in

    @staticmethod
    def weight(rows: Sequence[Row]) -> int:
        """What the mean over these rows weighs."""
        return len(rows)

    @staticmethod
    def length(row: Row) -> int:
        """How many tokens a row has in one forward."""
        return len(row["prompt_ids"]) + max(len(row["completion_ids"]), len(row["KL_completion_ids"]))


class Preferences(_Rowwise, DPOTrainer):  # type: ignore[misc]  # trl leaves its classes untyped
    """DPOTrainer, fed with pairs."""

    @staticmethod
    def length(row: Row) -> int:
        """Both completions stand in one forward, each after the prompt."""
        return 2 * (len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])))


class Judgements(_Rowwise, KTOTrainer):  # type: ignore[misc]  # likewise
    """KTOTrainer, fed with completions that are good or bad."""


class Imitation(_Rowwise, SFTTrainer):  # type: ignore[misc]  # likewise
    """SFTTrainer, fed with completions to imitate; its loss is the mean over their tokens."""

    @staticmethod
    def weight(rows: Sequence[Row]) -> int:
        """As many completion tokens as they have."""
        return sum(sum(label != -100 for label in row["labels"]) for row in rows)

    @staticmethod
    def length(row: Row) -> int:
        """How many tokens a row has."""
        return len(row["input_ids"])


_KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "dpo": (Preferences, DPOConfig),
    "kto": (Judgements, KTOConfig),
    "sft": (Imitation, SFTConfig),
}


def rowwise_trainer(
    model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, settings: TrlSettings, *, use_cpu: bool
) -> Any:
    """TRL's trainer of a method other than GRPO.

    Args:
        model: with the adapter that learns.
        tokenizer: the model's.
        optimizer: over the adapter's weights.
        settings: of which the method counts, and what it needs.
        use_cpu: stay on the CPU even where there is something faster.
    """
    kind, config = _KINDS[settings.method]
    with made_quietly():
        trainer = kind(
            model=model,
            args=config(
                output_dir=tempfile.gettempdir(),
                max_length=None,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=use_cpu,
                seed=settings.seed,
                per_device_train_batch_size=2,
                report_to="none",
                **({} if settings.method == "sft" else {"beta": settings.beta}),
            ),
            train_dataset=Dataset.from_list([_PLACEHOLDERS[settings.method]] * 2),
            processing_class=tokenizer,
            optimizers=(optimizer, None),
        )
    trainer.budget = settings.token_budget
    trainer.begin(dropout=settings.lora_dropout > 0.0)
    return trainer
