"""Exported models: adapter and weights are one, and whoever reads the folder has what the trainer had."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_llama import tiny_batch, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from tracetune.errors import InvalidInput
from tracetune.trainers.local import LocalTrainer
from tracetune.trainers.models import load_model
from tracetune.types import GroupBatch

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])


def trained(**changes) -> LocalTrainer:
    """A trainer whose adapter has moved."""
    model = tiny_model(**changes)
    trainer = LocalTrainer((model, tiny_tokenizer()), threads=1, learning_rate=0.02)
    for seed in range(3):
        trainer.step(tiny_batch(tiny_model(), seed=seed, shift=0.3))
    return trainer


@pytest.mark.parametrize("tied", [True, False])
def test_an_exported_model_gives_the_logits_that_the_trainer_gives(tmp_path, tied):
    """Read by `load_model`, with its tokenizer, without peft; the trainer's own model stays as it was, to the bit."""
    trainer = trained(tie_word_embeddings=tied)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with torch.inference_mode():
        expected, base = trainer.model(PROMPT).logits, tiny_model(tie_word_embeddings=tied)(PROMPT).logits
    trainer.export(tmp_path / "model")
    model, tokenizer = load_model(tmp_path / "model")
    with torch.inference_mode():
        found = model(PROMPT).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    assert (expected - base).abs().max() > 0.1
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name in model.state_dict())
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    assert tokenizer("w1 w2")["input_ids"] == tiny_tokenizer()("w1 w2")["input_ids"]
    after = trainer.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_exported_model_can_be_trained_on(tmp_path):
    """It is a model like any other: a new trainer begins where the old one ended, with a ratio of 1."""
    trainer = trained()
    trainer.export(tmp_path / "model")
    again = LocalTrainer(tmp_path / "model", threads=1, device="cpu")
    batch = tiny_batch(trainer.model)
    report = again.step(batch)
    assert (report.used, report.clip_fraction) == (batch.n_members, 0.0)


def test_a_model_of_half_precision_is_exported_as_such(tmp_path):
    """The folder has the type of the weights that were trained beneath, and `auto` reads it so."""
    trainer = LocalTrainer((tiny_model().to(torch.bfloat16), tiny_tokenizer()), threads=1, learning_rate=0.02)
    trainer.step(tiny_batch(tiny_model(), shift=0.3))
    trainer.export(tmp_path / "model")
    model, _ = load_model(tmp_path / "model", dtype="auto")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        expected, found = trainer.model(PROMPT).logits, model(PROMPT).logits
    # The merged weights are rounded once more: to 8 bits.
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.5)


def test_each_module_is_exported_by_itself(tmp_path):
    """The folder of a module gives that module's logits, and not another's."""
    trainer = LocalTrainer((tiny_model(), tiny_tokenizer()), threads=1, learning_rate=0.02, adapter_per_module=True)
    batch = tiny_batch(tiny_model(), shift=0.3)
    groups = [
        replace(group, members=[replace(one, module=module) for one in group.members])
        for module, group in zip("ab", batch, strict=True)
    ]
    for _ in range(3):
        trainer.step(GroupBatch(groups))
    logits = {}
    for module in "ab":
        trainer.export(tmp_path / module, module=module)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / module, dtype=torch.float32)
        trainer._adapters.use(trainer._adapter_of(module))
        with torch.inference_mode():
            logits[module] = model(PROMPT).logits
            torch.testing.assert_close(logits[module], trainer.model(PROMPT).logits, rtol=1e-5, atol=1e-4)
    assert (logits["a"] - logits["b"]).abs().max() > 0.1


def test_nothing_is_written_over(tmp_path):
    """A folder that holds something is refused and left alone; an empty one is filled."""
    trainer = trained()
    (tmp_path / "mine").mkdir()
    trainer.export(tmp_path / "mine")
    names = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert "model.safetensors" in names
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(InvalidInput, match="exists already; export into a new folder"):
            trainer.export(tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == names
    assert (tmp_path / "file").read_text() == "mine"


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    """Half a model never stands under the folder's name, nor beside it."""
    trainer = trained()

    def fail(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(type(trainer.tokenizer), "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        trainer.export(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.bfloat16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        ("auto", torch.float32),
    ],
)
def test_a_type_may_be_named(tmp_path, dtype, expected):
    """A model is loaded as the type that is named, and `auto` is the one it was saved as."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    trainer = LocalTrainer(tmp_path, dtype=dtype, device="cpu", threads=1)
    assert {weight.dtype for name, weight in trainer.model.named_parameters() if ".lora_" not in name} == {expected}
    assert {weight.dtype for name, weight in trainer.model.named_parameters() if ".lora_" in name} == {torch.float32}


def test_the_device_is_found_or_named(tmp_path):
    """`auto` is a GPU where there is one, and the CPU elsewhere; what is not here is refused by its name."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, device="auto")
    assert (model.device.type == "cpu") == (not torch.cuda.is_available() and not torch.backends.mps.is_available())
    for device in ("gpu", "cuda:99"):
        with pytest.raises(InvalidInput, match=f"no device '{device}' here .*; try \"auto\""):
            load_model(tmp_path, device=device)
    with pytest.raises(InvalidInput, match="dtype is 'half'; it can be 'float32', 'bfloat16', 'auto'"):
        load_model(tmp_path, dtype="half")
