"""The endpoint of a local model: an address that OpenAI's clients can call, and a trainer behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracetune.errors import InvalidInput
from tracetune.trainers.endpoint.decoder import AdapterOf, Decoder
from tracetune.trainers.endpoint.facade import Facade
from tracetune.trainers.endpoint.grammars import Grammars
from tracetune.trainers.endpoint.models import cache_tokens_of, end_tokens
from tracetune.trainers.endpoint.prompts import Prompts
from tracetune.types import Journal, Sampling, Upstream


class LocalEndpoint(Facade):
    """Serves a local model as OpenAI's clients expect, and records the exact tokens of every choice.

    The model stays the caller's: a trainer changes its weights in `exclusively`, and
    says so with `publish`. What `exclusively` is given runs in the decode thread: torch
    computes at half its speed in a second one.

    Example:
        >>> with LocalEndpoint(model, tokenizer, version="try-1@0", journal=journal) as endpoint:  # doctest: +SKIP
        ...     client = openai.OpenAI(base_url=endpoint.policy.base_url, api_key=endpoint.policy.api_key)
        ...     client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hello"}])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "policy",
        version: str,
        journal: Journal,
        sampling: Sampling | None = None,
        models: Mapping[str, str] = {},
        forward: Upstream | None = None,
        max_rows: int = 64,
        cache_tokens: int | None = None,
        threads: int | None = None,
        adapter_of: AdapterOf | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare an endpoint; `start`, or `with`, opens it.

        Args:
            model: a causal language model with full attention, with or without adapters.
            tokenizer: its tokenizer; chat needs its chat template.
            name: the model name that programs ask for.
            version: the version of the weights, stamped on each completion.
            journal: gets each finished choice before its client does.
            sampling: goes over what programs ask, while it is set.
            models: names that programs have hard-coded, each mapped to `name`.
            forward: where requests for other models go; they are refused where it is None.
            max_rows: how many choices are decoded at once; others wait.
            cache_tokens: how many tokens' keys and values are held at once, in prompts and
                completions together; choices beyond that wait, and one alone may exceed
                it. By default what 4 GB hold.
            threads: how many threads torch uses; by default as many as it does here.
            adapter_of: given the module that asks (the header `x-tracetune-module`, None
                where there is none), names the peft adapter to answer with, or None for
                the model beneath; it may raise `Problem`. By default the model is used
                as it is, for all modules. Rows of several adapters share a batch.
            host: the address to listen at.
            port: 0 takes a free one.

        Raises:
            InvalidInput: if a mapped name leads to another model, or a number makes no sense.
            EndpointError: if the model has layers that this endpoint can't decode.
        """
        if max_rows < 1:
            raise InvalidInput(f"max_rows is {max_rows}; at least 1 row must be decoded at once")
        if cache_tokens is not None and cache_tokens < 1:
            raise InvalidInput(f"cache_tokens is {cache_tokens}; at least 1 token must be held")
        self._decoder = Decoder(
            model,
            tokenizer,
            version=version,
            journal=journal,
            max_rows=max_rows,
            cache_tokens=cache_tokens or cache_tokens_of(model),
            threads=threads or torch.get_num_threads(),
            adapter_of=adapter_of,
        )
        config = model.config.get_text_config(decoder=True)
        prompts = Prompts(tokenizer, context=config.max_position_embeddings, vocabulary=config.vocab_size)
        super().__init__(
            self._decoder,
            prompts,
            name=name,
            sampling=sampling,
            models=models,
            forward=forward,
            grammars=Grammars(tokenizer, sorted(end_tokens(model, tokenizer))),
            host=host,
            port=port,
        )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the model to oneself, to train it: requests wait meanwhile, none is cut short.

        Inside, the model's modules are in the mode (train or eval) that their owner left them in.
        """
        with self._decoder.exclusive():
            yield
