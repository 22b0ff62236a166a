"""A tiny random Llama with grouped-query attention, a word-level tokenizer, and endpoints of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tracetune.trainers.endpoint import LocalEndpoint
from tracetune.types import Completion

WORDS = ["<pad>", "<end>", "<unk>", "<user>", "<assistant>", "<system>"]
WORDS += [f"w{index}" for index in range(64)]
# Pieces of which several make one word, so that text does not grow by whole words only.
WORDS += [f"##{letter}" for letter in "abcdef"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class ListJournal:
    """Keeps what it is told, and says when there is something new."""

    def __init__(self) -> None:
        self.completions: list[Completion] = []
        self.written = threading.Condition()

    def completion(self, completion: Completion) -> None:
        with self.written:
            self.completions.append(completion)
            self.written.notify_all()

    def policy(self, *args: Any, **kwargs: Any) -> None: ...

    batch = job = policy


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Words and pieces of words, with a chat template."""
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<end>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<system>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    """Two layers, four heads that share two key-value heads, random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def journal() -> ListJournal:
    """Where the test's endpoints record."""
    return ListJournal()


@pytest.fixture
def serve(model, tokenizer, journal) -> Iterator[Callable[..., LocalEndpoint]]:
    """Starts endpoints, and stops them when the test is over."""
    with ExitStack() as stack:

        def start(**settings: Any) -> LocalEndpoint:
            settings = {"version": "try@0", "journal": journal, "threads": 1, **settings}
            served = settings.pop("model", model), settings.pop("tokenizer", tokenizer)
            return stack.enter_context(LocalEndpoint(*served, **settings))

        yield start


@pytest.fixture
def endpoint(serve) -> LocalEndpoint:
    """One with nothing set."""
    return serve()


@pytest.fixture
def connect() -> Iterator[Callable[..., openai.OpenAI]]:
    """Makes openai clients of an endpoint."""
    with ExitStack() as stack:

        def client(endpoint: LocalEndpoint, **settings: Any) -> openai.OpenAI:
            policy = endpoint.policy
            settings = {"base_url": policy.base_url, "api_key": policy.api_key, "max_retries": 0, **settings}
            return stack.enter_context(openai.OpenAI(**settings))

        yield client


@pytest.fixture
def client(endpoint, connect) -> openai.OpenAI:
    """The client of `endpoint`."""
    return connect(endpoint)
