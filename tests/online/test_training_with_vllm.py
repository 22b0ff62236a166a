"""A trainer whose policy a vLLM server samples from: it learns from the tokens that the server returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from endpoint.vllm_like import VllmLike, serving
from looped_program import TRAIN, low_words, walk
from peft import PeftModel
from tiny_llama import tiny_model, tiny_tokenizer

import tracetune as tt
from tracetune.trainers.endpoint import Upstream, VllmEndpoint
from tracetune.trainers.local import LocalTrainer


class Loading(VllmLike):
    """As vLLM, and reads each adapter into a model as peft does."""

    def _load(self, handler: Any, name: str, folder: Path) -> None:
        PeftModel.from_pretrained(tiny_model(), str(folder))
        super()._load(handler, name, folder)


def test_a_local_trainer_learns_from_what_a_server_samples(tmp_path: Path):
    """Each step's rollouts are sampled by the adapter of the step before, exactly known, and learned from."""
    server = Loading(prompt="w2 w3")

    class VllmTrainer(LocalTrainer):
        def endpoint(self, env: Any, version: str) -> VllmEndpoint:
            return VllmEndpoint(
                upstream,
                write_adapter=self.save,
                adapter_folder=tmp_path / "adapters",
                version=version,
                journal=env.journal,
            )

    with serving(server) as service:
        upstream = Upstream(service.upstream.base_url, "EMPTY")
        learner = VllmTrainer((tiny_model(), tiny_tokenizer()), threads=1, learning_rate=0.01)
        settings = {"steps": 2, "examples_per_step": 2, "rollouts": 4, "val": TRAIN[:2], "progress": False}
        result = tt.optimize(walk, TRAIN, low_words, learner, store=tmp_path / "a.duckdb", **settings)
    assert [report.step for report in result.reports if report.used] == [1, 2]
    names = [name for event, name in server.events if event == "load"]
    assert [event for event in server.events if event[0] != "sample"] == [
        ("load", names[0]),
        ("load", names[1]),
        ("unload", names[0]),
        ("load", names[2]),
        ("unload", names[1]),
        ("unload", names[2]),
    ]
    versions = tt.Store(result.store).sql(
        "SELECT split, policy_version, bool_and(exact) AS exact, min(len(completion_logprobs)) > 0 AS known FROM calls "
        "GROUP BY ALL ORDER BY ALL"
    )
    assert [tuple(row.values()) for row in versions.rows()] == [
        ("train", "run-1@0", True, True),
        ("train", "run-1@1", True, True),
        ("val", "run-1@0", True, True),
        ("val", "run-1@2", True, True),
    ]
