"""Checkpoints of the local trainer: a step after a resume is the step that would have been, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from redaction.planted_secrets import NAMED, SHAPED
from safetensors.torch import load_file
from tiny_llama import own_logprobs, tiny_batch, tiny_model, tiny_tokenizer

from tracetune.errors import CheckpointError
from tracetune.trainers.local import LocalTrainer
from tracetune.types import GroupBatch

SETTINGS = {
    "shared": {
        "learning_rate": 1e-2,
        "kl": 0.05,
        "schedule": "cosine",
        "warmup_steps": 1,
        "total_steps": 4,
        "epochs": 2,
        "lora_dropout": 0.1,
    },
    "gspo": {
        "learning_rate": 1e-2,
        "kl": 0.05,
        "loss": "gspo",
        "clip": 0.05,
        "clip_high": 0.1,
        "importance": "sequence",
        "epochs": 2,
        "gradient_checkpointing": True,
    },
    "by module": {"learning_rate": 1e-2, "adapter_per_module": True, "epochs": 2, "lora_dropout": 0.1},
}
CASES = [(name, dtype) for name in SETTINGS for dtype in ("float32", "bfloat16")]
IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_local_checkpoints import CASES, made, train

for name, dtype in CASES:
    folder = Path(sys.argv[3]) / f"{name} {dtype}"
    trainer = made(name, dtype)
    trainer.load(folder / "half")
    train(trainer, 2, 3)
    trainer.save(folder / "resumed")
"""


def made(name: str, dtype: str) -> LocalTrainer:
    """A new trainer of an equal model with the settings of that name."""
    return LocalTrainer((tiny_model().to(getattr(torch, dtype)), tiny_tokenizer()), threads=1, **SETTINGS[name])


def train(trainer: LocalTrainer, *seeds: int) -> None:
    """Steps on stored batches; each has a module that the ones before had not."""
    for seed in seeds:
        batch = tiny_batch(tiny_model(), seed=seed, shift=0.3)
        modules = ["answer", f"hop {seed}"]
        groups = [
            replace(group, members=[replace(member, module=module) for member in group.members])
            for module, group in zip(modules, batch, strict=True)
        ]
        trainer.step(GroupBatch(groups))


def contents(folder: Path) -> dict[str, object]:
    """Everything in a checkpoint, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_four_steps_are_two_steps_and_two_more_in_a_fresh_process(tmp_path):
    """Weights, moments and step are equal bit for bit, whatever the settings and the type of the weights beneath."""
    for name, dtype in CASES:
        folder = tmp_path / f"{name} {dtype}"
        straight = made(name, dtype)
        train(straight, 0, 1)
        straight.save(folder / "half")
        train(straight, 2, 3)
        straight.save(folder / "straight")
    here = Path(__file__).parent
    arguments = [str(here), str(here.parent), str(tmp_path)]
    subprocess.run([sys.executable, "-c", IN_A_FRESH_PROCESS, *arguments], check=True)

    for name, dtype in CASES:
        straight, resumed = (tmp_path / f"{name} {dtype}" / kind for kind in ("straight", "resumed"))
        files = sorted(path.relative_to(straight) for path in straight.rglob("*.safetensors"))
        assert files == sorted(path.relative_to(resumed) for path in resumed.rglob("*.safetensors"))
        assert len(files) == (6 if name == "by module" else 2)
        for file in files:
            expected, found = load_file(straight / file), load_file(resumed / file)
            assert expected.keys() == found.keys()
            # The state of PyTorch's own random numbers is the process's, and no step draws from it.
            keys = expected.keys() - {"torch_random_state"}
            assert [key for key in keys if not torch.equal(expected[key], found[key])] == []
        states = [json.loads((folder / "trainer.json").read_text()) for folder in (straight, resumed)]
        assert states[0]["steps_done"] == states[1]["steps_done"] == 4


def test_dropout_disturbs_nobody_elses_random_numbers(make_trainer):
    """Its numbers follow from the seed and the step; PyTorch's own generator goes on as if there were none."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    reports = []
    for state in (5, 6):
        torch.manual_seed(state)
        trainer = make_trainer(lora_dropout=0.5)
        trainer.step(tiny_batch(tiny_model(), seed=1, shift=0.3))
        reports.append(trainer.step(tiny_batch(tiny_model(), shift=0.3)).loss)
        if state == 5:
            assert torch.equal(torch.rand(3), expected)
    assert reports[0] == reports[1]


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


def test_moments_of_other_weights_are_refused(make_trainer, tmp_path):
    """An optimiser's file that came from elsewhere is no part of the checkpoint."""
    trainer = make_trainer(adapter_per_module=True)
    for seed in (0, 1):
        train(trainer, seed)
        trainer.save(tmp_path / str(seed))
    # The second step has met a module that the first had not.
    (tmp_path / "1" / "optimizer.safetensors").replace(tmp_path / "0" / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint .* is of other weights"):
        make_trainer(adapter_per_module=True).load(tmp_path / "0")


@pytest.mark.parametrize("name", ["shared", "by module"])
def test_a_checkpoint_holds_nothing_of_what_was_trained_on(tmp_path, name):
    """Secrets that stand in prompts and completions are in no file of a checkpoint: weights and settings are."""
    said = "\n".join([*(text for text, _ in SHAPED.values()), *(f"{key}={value}" for key, value in NAMED.items())])
    trainer = made(name, "float32")
    batch = tiny_batch(tiny_model(), seed=0, shift=0.3)
    told = [
        replace(
            group,
            members=[replace(one, text=said, messages=({"role": "user", "content": said},)) for one in group.members],
        )
        for group in batch
    ]
    assert trainer.step(GroupBatch(told)).used > 0
    trainer.save(tmp_path)
    written = b"\n".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    secrets = {secret for _, secret in SHAPED.values()} | set(NAMED.values())
    assert len(secrets) >= 64
    assert b"learning_rate" in written
    assert [secret for secret in secrets if secret.encode() in written] == []
