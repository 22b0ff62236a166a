"""The local trainer keeps what every trainer promises."""

from __future__ import annotations

from tiny_llama import WORDS, tiny_model, tiny_tokenizer
from unigram_package import best_of_group

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


def test_the_documents_best_of_group_accounts_for_those_it_passes_over():
    """A trainer that picks the best of each group says what became of the others."""

    class BestOfGroup(TestLocalTrainer):
        learns_from_all = False

        def make_trainer(self) -> LocalTrainer:
            return best_of_group()((tiny_model(), tiny_tokenizer()), threads=1)

    BestOfGroup().test_the_report_accounts_for_every_member()
    BestOfGroup().test_groups_without_spread_teach_nothing()
