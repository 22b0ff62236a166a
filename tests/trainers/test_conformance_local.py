"""The local trainer keeps what every trainer promises."""

from __future__ import annotations

from tiny_llama import WORDS, tiny_model, tiny_tokenizer

from tracetune.testing import WeightTrainerConformance
from tracetune.trainers.local import LocalTrainer


class TestLocalTrainer(WeightTrainerConformance):
    """The tiny model, to the bit."""

    words = tuple(WORDS[5:20])
    logprob = -3.5

    def make_trainer(self) -> LocalTrainer:
        return LocalTrainer((tiny_model(), tiny_tokenizer()), threads=1)


class TestLocalTrainerOfModules(TestLocalTrainer):
    """With an adapter for each module, too."""

    def make_trainer(self) -> LocalTrainer:
        return LocalTrainer((tiny_model(), tiny_tokenizer()), threads=1, adapter_per_module=True)
