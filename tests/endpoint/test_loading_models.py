"""Where local models come from, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tracetune.errors import ModelNotFound
from tracetune.trainers import models
from tracetune.trainers.models import load_model


@pytest.fixture
def folder(model, tokenizer, tmp_path) -> Path:
    """A checkpoint."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_folder_gives_its_model_and_tokenizer(folder, kind, model, tokenizer):
    """Weights and chat template are those that were saved, and the dtype is the one asked for."""
    loaded, its_tokenizer = load_model(kind(folder))
    assert {name: tensor.tolist() for name, tensor in loaded.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in model.state_dict().items()
    }
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert its_tokenizer.chat_template == tokenizer.chat_template
    assert load_model(folder, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nowhere", "does not exist"),
        (Path("nowhere"), "does not exist"),
        ("some/where/deep", "does not exist"),
        ("nowhere.gguf", "does not exist"),
        ("empty", "has no config.json"),
        ("text.txt", "is not a model"),
        ("broken.gguf", "holds no model that can be read"),
    ],
)
def test_a_path_without_a_model_is_refused_in_one_sentence(tmp_path, monkeypatch, source, words):
    """The message names the path and says what would do."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.txt").write_text("not a model")
    Path("broken.gguf").write_bytes(b"not a model either")
    with pytest.raises(ModelNotFound, match=words) as caught:
        load_model(source)
    assert Path(source).name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_cut_short_is_refused(folder):
    """Weights that end too early are no model."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelNotFound, match=r"holds no model that can be read.*save it again"):
        load_model(folder)


def test_a_hub_that_does_not_answer_is_told_from_a_path(monkeypatch):
    """Without a network, the message says that the name was taken for a model on the hub."""

    def offline(name, **where):
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(ModelNotFound) as caught:
        load_model("owner/name")
    assert str(caught.value) == (
        "'owner/name' is no local path, and the hub gave no such model (We couldn't connect to the hub.); "
        "check the name and the network, or give a local folder"
    )
