"""One thread for every test of a trainer, and a fresh model for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tinker_service import KEY, TinkerService, client_tasks
from tiny_llama import tiny_model, tiny_tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tracetune.trainers.local import LocalTrainer
from tracetune.trainers.tinker import TinkerTrainer

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


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama and its tokenizer, saved."""
    folder: Path = tmp_path_factory.mktemp("tiny-llama")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def service(tiny_folder: Path) -> Iterator[TinkerService]:
    """A service on loopback that trains and samples the tiny Llama; a test closes every client it opens."""
    with TinkerService(tiny_folder).running() as running:
        yield running
        assert client_tasks() == []


@pytest.fixture
def make_tinker(service: TinkerService) -> Iterator[Any]:
    """Makes trainers at that service, each with an adapter of its own, and closes them after the test."""
    with ExitStack() as stack:

        def make(**settings: Any) -> TinkerTrainer:
            at_service = {"base_url": service.address, "api_key": KEY, "timeout": 60.0}
            return stack.enter_context(TinkerTrainer(service.name, **{**at_service, **settings}))

        yield make
