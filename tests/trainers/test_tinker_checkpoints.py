"""Checkpoints of the tinker trainer: the service keeps the state, a folder says where a run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from looped_program import TRAIN, low_words, walk
from tinker_service import KEY
from tiny_llama import tiny_batch, tiny_model

import tracetune as tt
from tracetune.errors import CheckpointError
from tracetune.trainers import make_trainer

SETTINGS = {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 1, "total_steps": 4}
UNTIL_KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from looped_program import TRAIN, low_words, walk
import tracetune as tt
from tracetune.trainers.tinker import TinkerTrainer

trainer = TinkerTrainer(sys.argv[2], learning_rate=1e-2)
tt.optimize(walk, TRAIN, low_words, trainer, store=sys.argv[3], steps=50, examples_per_step=1, rollouts=4,
            run="killed", progress=False, on_step=lambda step, figures: print(step, flush=True))
"""


def train(trainer, *seeds: int) -> None:
    """Steps on stored batches."""
    for seed in seeds:
        trainer.step(tiny_batch(tiny_model(), seed=seed, shift=0.3))


def test_four_steps_are_two_steps_and_two_more_after_a_resume(service, make_tinker, tmp_path):
    """Weights, moments and the schedule go on, to the bit, in an adapter that is made of the state."""
    straight = make_tinker(**SETTINGS)
    train(straight, 0, 1)
    straight.save(tmp_path)
    train(straight, 2, 3)
    expected = service.learner.copy()

    resumed = make_tinker(**SETTINGS)
    resumed.load(tmp_path)
    train(resumed, 2, 3)
    assert resumed.steps_done == 4
    assert len(service.kept.learners) == 2
    found = service.learner.copy()
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []


def test_a_checkpoint_is_one_file_that_names_the_state(service, make_tinker, tmp_path):
    """It holds the count of steps, the settings, the model and the service's path; the state's life is asked for."""
    trainer = make_tinker(state_ttl_seconds=7200)
    train(trainer, 0)
    trainer.save(tmp_path)
    (state,) = service.kept.states
    assert [path.name for path in tmp_path.iterdir()] == ["trainer.json"]
    assert json.loads((tmp_path / "trainer.json").read_text()) == {
        "steps_done": 1,
        "settings": trainer.settings.model_dump(),
        "model": service.name,
        "state": state,
    }
    assert service.bodies("save_weights")[0]["ttl_seconds"] == 7200


def test_a_step_may_be_saved_twice(service, make_tinker, tmp_path):
    """Each time under a name of its own: the first may have been lost on the way."""
    trainer = make_tinker()
    trainer.save(tmp_path)
    trainer.save(tmp_path)
    assert len(service.kept.states) == 2


def test_what_does_not_belong_is_refused_and_nothing_changes(service, make_tinker, tmp_path):
    """Other settings, another model, a cut file, a state that is gone: the trainer goes on as it was."""
    make_tinker(kl=0.05).save(tmp_path / "kl")
    make_tinker().save(tmp_path / "gone")
    make_tinker().save(tmp_path / "model")
    record = json.loads((tmp_path / "model" / "trainer.json").read_text())
    (tmp_path / "model" / "trainer.json").write_text(json.dumps({**record, "model": "other"}))
    make_tinker().save(tmp_path / "cut")
    whole = (tmp_path / "cut" / "trainer.json").read_text()
    (tmp_path / "cut" / "trainer.json").write_text(whole[: len(whole) // 2])
    service.kept.states.clear()

    trainer = make_tinker()
    train(trainer, 0)
    before = service.learner.copy()
    for name, message in {
        "kl": r"was written with kl=0\.05, not 0\.0; give the trainer its setting",
        "model": "was written for 'other', not",
        "cut": "is no whole checkpoint of a tinker trainer",
        "nowhere": "is no whole checkpoint of a tinker trainer",
        "gone": r"^tinker://.*/weights/step-000000-\w+, which .* leads to, could not be loaded: .*NotFoundError",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            trainer.load(tmp_path / name)
    assert trainer.steps_done == 1
    after = service.learner.copy()
    assert [name for name, weight in before.items() if not torch.equal(weight, after[name])] == []
    train(trainer, 1)
    assert service.learner.updates == 2


def test_a_killed_run_goes_on_from_its_last_step(service, tmp_path):
    """Killed in the midst of its steps, a run is resumed with the next one, from the state of the last."""
    store = tmp_path / "traces.duckdb"
    environment = {**os.environ, "TINKER_BASE_URL": service.address, "TINKER_API_KEY": KEY}
    arguments = [sys.executable, "-c", UNTIL_KILLED, str(Path(__file__).parent.parent), service.name, str(store)]
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGKILL)

    last = max(int(folder.name.removeprefix("step-")) for folder in Path(f"{store}.checkpoints/killed").glob("step-*"))
    done: list[int] = []
    result = tt.optimize(
        walk,
        TRAIN,
        low_words,
        make_trainer("tinker", **at(service), learning_rate=1e-2),
        store=store,
        run="killed",
        steps=last + 1,
        examples_per_step=1,
        rollouts=4,
        resume=True,
        progress=False,
        on_step=lambda step, figures: done.append(step),
    )
    assert (result.policy.version, done) == (f"killed@{last + 1}", [last + 1])
    (loaded,) = service.bodies("load_weights")
    assert f"step-{last:06d}" in loaded["path"]
    assert loaded["optimizer"]
    assert service.learner.updates == 1


def at(service) -> dict[str, Any]:
    """Where a trainer that is made by its name finds a service."""
    return {"model": service.name, "base_url": service.address, "api_key": KEY, "timeout": 60.0}
