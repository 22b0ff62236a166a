"""Checkpoints of the local trainer: a step after a resume is the step that would have been, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_llama import own_logprobs, tiny_batch, tiny_model, tiny_tokenizer

from tracetune.errors import CheckpointError
from tracetune.trainers.local import LocalTrainer

SETTINGS = {
    "learning_rate": 1e-2,
    "kl": 0.05,
    "schedule": "cosine",
    "warmup_steps": 1,
    "total_steps": 4,
    "epochs": 2,
    "lora_dropout": 0.1,
}
IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from tiny_llama import tiny_batch, tiny_model, tiny_tokenizer
from tracetune.trainers.local import LocalTrainer
import json

trainer = LocalTrainer((tiny_model(), tiny_tokenizer()), threads=1, **json.loads(sys.argv[2]))
trainer.load(Path(sys.argv[3]))
for seed in (2, 3):
    trainer.step(tiny_batch(tiny_model(), seed=seed, shift=0.3))
trainer.save(Path(sys.argv[4]))
"""


def train(trainer: LocalTrainer, *seeds: int) -> None:
    """Steps on stored batches."""
    for seed in seeds:
        trainer.step(tiny_batch(tiny_model(), seed=seed, shift=0.3))


def contents(folder: Path) -> dict[str, object]:
    """Everything in a checkpoint, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_four_steps_are_two_steps_and_two_more_in_a_fresh_process(make_trainer, tmp_path):
    """Weights, moments, random states and step are equal bit for bit, under dropout, schedule and epochs."""
    straight = make_trainer(**SETTINGS)
    torch.manual_seed(7)
    train(straight, 0, 1)
    straight.save(tmp_path / "half")
    train(straight, 2, 3)
    straight.save(tmp_path / "straight")
    arguments = [
        str(Path(__file__).parent.parent),
        json.dumps(SETTINGS),
        str(tmp_path / "half"),
        str(tmp_path / "resumed"),
    ]
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, *arguments], check=True)

    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        expected, found = load_file(tmp_path / "straight" / name), load_file(tmp_path / "resumed" / name)
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    states = [json.loads((tmp_path / name / "trainer.json").read_text()) for name in ("straight", "resumed")]
    assert states[0]["steps_done"] == states[1]["steps_done"] == 4


def test_a_checkpoint_is_safetensors_and_json(make_trainer, tmp_path):
    """Nothing that has to be unpickled is written."""
    trainer = make_trainer()
    train(trainer, 0)
    trainer.save(tmp_path / "state")
    assert sorted(contents(tmp_path / "state")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
    ]


def test_a_checkpoint_holds_an_adapter_that_peft_reads(make_trainer, tmp_path):
    """The folder is a LoRA adapter like any other."""
    trainer = make_trainer(learning_rate=1e-2)
    train(trainer, 0, 1)
    trainer.save(tmp_path)
    read = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert own_logprobs(read, [5, 6], [7, 8, 1]) == own_logprobs(trainer.model, [5, 6], [7, 8, 1])


def test_other_settings_are_refused_and_nothing_changes(make_trainer, tmp_path):
    """The message names the setting; the trainer is as it was."""
    trainer = make_trainer(kl=0.05)
    train(trainer, 0)
    trainer.save(tmp_path / "theirs")
    other = make_trainer(kl=0.1)
    other.save(tmp_path / "before")
    with pytest.raises(CheckpointError, match=r"was written with kl=0\.05, not 0\.1"):
        other.load(tmp_path / "theirs")
    other.save(tmp_path / "after")
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_another_model_is_refused(make_trainer, tmp_path):
    """A model of the same shape with other weights is another model."""
    make_trainer().save(tmp_path)
    other = LocalTrainer((tiny_model(seed=1), tiny_tokenizer()), threads=1)
    with pytest.raises(CheckpointError, match="written for another model"):
        other.load(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "trainer.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_incomplete_checkpoint_is_refused_and_nothing_changes(make_trainer, tmp_path, name, damage):
    """A file that is missing or cut short is an error that says so, not half a resume."""
    trainer = make_trainer()
    train(trainer, 0)
    trainer.save(tmp_path / "state")
    path = tmp_path / "state" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    other = make_trainer()
    other.save(tmp_path / "before")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        other.load(tmp_path / "state")
    other.save(tmp_path / "after")
    assert contents(tmp_path / "before") == contents(tmp_path / "after")
