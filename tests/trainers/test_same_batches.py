"""Whatever the trainer, the same stored groups reach it: one word changes, and not what is learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tinker_service import KEY, TinkerService

import tracetune as tt
from tracetune.demo import POLICY_FOLDER, examples, reward
from tracetune.demo.program import find_person
from tracetune.rows import group_table
from tracetune.trainers import WeightTrainer
from tracetune.trainers.local import LocalTrainer
from tracetune.trainers.tinker import TinkerTrainer
from tracetune.trainers.trl import TrlTrainer
from tracetune.types import GroupBatch, StepReport

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rollouts of one step of the demo's program, and its one step."""
    path = tmp_path_factory.mktemp("stores") / "traces.duckdb"
    tt.optimize(
        find_person,
        examples("train", 4),
        reward,
        LocalTrainer(POLICY_FOLDER, threads=1),
        store=path,
        steps=1,
        rollouts=6,
        max_concurrency=24,
        progress=False,
    )
    return path


def keeping(trainer: type[WeightTrainer], folder: Path) -> type[WeightTrainer]:
    """The same trainer, which writes down every batch that reaches it, and again after it has learned from it."""

    class Keeping(trainer):  # type: ignore[valid-type, misc]
        def step(self, batch: GroupBatch) -> StepReport:
            pq.write_table(group_table(batch), folder / f"{self.name}-{self.steps_done}.parquet")
            report: StepReport = super().step(batch)
            pq.write_table(group_table(batch), folder / f"{self.name}-{self.steps_done - 1}-afterwards.parquet")
            return report

    return Keeping


def test_the_batches_that_reach_each_trainer_are_the_same_file(store, tmp_path):
    """Local, TRL and a Tinker service are fed equal bytes of Parquet, step by step, and change none of them."""
    with TinkerService(POLICY_FOLDER).running() as service:
        trainers: list[tuple[type[WeightTrainer], dict[str, Any]]] = [
            (LocalTrainer, {"threads": 1}),
            (TrlTrainer, {"threads": 1}),
            (TinkerTrainer, {"base_url": service.address, "api_key": KEY, "loss": "ppo"}),
        ]
        reports = {}
        for kind, settings in trainers:
            model = str(POLICY_FOLDER) if kind is TinkerTrainer else POLICY_FOLDER
            with keeping(kind, tmp_path)(model, **settings) as trainer:
                result = tt.train(store, trainer, held_out=0.0, members_per_step=24, progress=False)
            reports[kind.name] = [(report.step, report.used, report.tokens) for report in result.reports]
    assert len(reports["local"]) >= 2
    assert reports["local"] == reports["trl"] == reports["tinker"]
    for step, (_, used, _) in enumerate(reports["local"]):
        files = [
            (tmp_path / f"{name}-{step}{when}.parquet").read_bytes() for name in reports for when in ("", "-afterwards")
        ]
        assert [file == files[0] for file in files] == [True] * 6
        rows = pq.read_table(tmp_path / f"local-{step}.parquet")
        assert rows.num_rows == used
        assert rows["completion_logprobs"].null_count == 0
