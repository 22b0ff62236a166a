"""The tinker trainer keeps what every trainer promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_llama import WORDS

from tracetune.testing import WeightTrainerConformance
from tracetune.trainers.tinker import TinkerTrainer


class TestTinkerTrainer(WeightTrainerConformance):
    """At a service on loopback, each trainer with an adapter of its own."""

    words = tuple(WORDS[5:20])
    logprob = -3.5

    @pytest.fixture(autouse=True)
    def _at(self, make_tinker: Callable[[], TinkerTrainer]) -> None:
        self.make_trainer = make_tinker  # type: ignore[method-assign]
