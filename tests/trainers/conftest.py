"""One thread for every test of a trainer, and a fresh model for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llama import tiny_model, tiny_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tracetune.trainers.local import LocalTrainer

torch.set_num_threads(1)


@pytest.fixture
def model() -> LlamaForCausalLM:
    """A tiny random Llama."""
    return tiny_model()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Its tokenizer."""
    return tiny_tokenizer()


@pytest.fixture
def make_trainer(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Makes local trainers of equal models, on one thread."""

    def make(**settings: Any) -> LocalTrainer:
        return LocalTrainer((tiny_model(), tokenizer), threads=1, **settings)

    return make
