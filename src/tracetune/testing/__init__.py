"""For tests: of programs that are traced, and of trainers.

Spans and ids as plain values; the suite that every trainer passes, and the world in
memory that it runs them in. Nothing here needs pytest to be installed.
"""

import sys

if (pytest := sys.modules.get("pytest")) is not None:
    # The suite's asserts then show their values, as those of any test do.
    pytest.register_assert_rewrite("tracetune.testing.trainer_conformance", "tracetune.testing.weight_conformance")

from tracetune.testing.batches import scripted_batch, without_tokens
from tracetune.testing.environment import ScriptedEnvironment
from tracetune.testing.journal import MemoryJournal
from tracetune.testing.spans import deterministic, span_tree, spool_records
from tracetune.testing.trainer_conformance import TrainerConformance
from tracetune.testing.weight_conformance import WeightTrainerConformance

__all__ = [
    "MemoryJournal",
    "ScriptedEnvironment",
    "TrainerConformance",
    "WeightTrainerConformance",
    "deterministic",
    "scripted_batch",
    "span_tree",
    "spool_records",
    "without_tokens",
]
