"""The trl trainer keeps what every trainer promises."""

from __future__ import annotations

from tiny_llama import WORDS, tiny_model, tiny_tokenizer

from tracetune.testing import WeightTrainerConformance
from tracetune.trainers.trl import TrlTrainer


class TestTrlTrainer(WeightTrainerConformance):
    """The tiny model, by GRPO, in one process."""

    words = tuple(WORDS[5:20])
    logprob = -3.5
    tolerance = 1e-6

    def make_trainer(self) -> TrlTrainer:
        return TrlTrainer((tiny_model(), tiny_tokenizer()), device="cpu", threads=1)
