"""The tinker trainer keeps what every trainer promises."""

from __future__ import annotations

import pytest
from tinker_service import KEY, TinkerService
from tiny_llama import WORDS

from tracetune.testing import WeightTrainerConformance
from tracetune.trainers.tinker import TinkerTrainer


class TestTinkerTrainer(WeightTrainerConformance):
    """At a service on loopback, each trainer with an adapter of its own."""

    words = tuple(WORDS[5:20])
    logprob = -3.5

    @pytest.fixture(autouse=True)
    def _at(self, service: TinkerService) -> None:
        self.service = service

    def make_trainer(self) -> TinkerTrainer:
        return TinkerTrainer(self.service.name, base_url=self.service.address, api_key=KEY, timeout=60.0)
