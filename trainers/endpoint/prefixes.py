"""Prompts that have been prefilled: each computed once, and what they share computed once.

The rollouts of one example ask with the same prompt, most of them at the same time and
some a little later, and all prompts of a module begin with the same instruction. So the
newest prefixes are kept until the weights change, and of a new prompt only what follows
its longest known beginning is computed.
"""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from tracetune.trainers.endpoint.cache import Prefix
from tracetune.trainers.endpoint.mixing import AdapterMixing

# Prompt tokens that one forward pass prefills, padding included: it bounds the memory of a pass.
PASS_TOKENS = 2048
# Shared beginnings are counted in steps of so many tokens: prompts of one pass share equally much.
SHARED_STEP = 16
# Fewer tokens are not worth waiting for another pass, which reads all weights once more.
WORTH_A_PASS = 32


class Prompt(NamedTuple):
    """The tokens of a prompt, and the adapter that reads them: keys and values depend on both.

    Attributes:
        adapter: its name; "" where the model is used as it is.
    """

    adapter: str
    ids: tuple[int, ...]


class Prefixes:
    """The prefilled prompts of one model, the least recently asked for first.

    Args:
        model: computes them.
        mixing: tells its layers which prompt has which adapter.
        kept_tokens: of prompts that are kept for rows that come later.
    """

    def __init__(self, model: PreTrainedModel, mixing: AdapterMixing, *, kept_tokens: int) -> None:
        self._model = model
        self._mixing = mixing
        self._kept_tokens = kept_tokens
        self._kept: OrderedDict[Prompt, Prefix] = OrderedDict()

    def __contains__(self, prompt: object) -> bool:
        return prompt in self._kept

    def of(self, prompts: Sequence[Prompt]) -> list[Prefix]:
        """The prefix of each prompt; those not known yet are computed, each once."""
        unknown = sorted({prompt for prompt in prompts if prompt not in self._kept})
        while unknown:
            first, unknown = self._split(unknown)
            self._prefill(first)
        for prompt in prompts:
            self._kept.move_to_end(prompt)
        found = [self._kept[prompt] for prompt in prompts]
        kept_tokens = sum(len(prompt.ids) for prompt in self._kept)
        while kept_tokens > self._kept_tokens:
            prompt, _ = self._kept.popitem(last=False)
            kept_tokens -= len(prompt.ids)
        return found

    def clear(self) -> None:
        """Forget them: the weights have changed."""
        self._kept.clear()

    def _split(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
        """Sorted prompts, those first that others gain from: these begin more like one of them than like any kept."""
        first: list[Prompt] = []
        others: list[Prompt] = []
        for prompt, (known, _) in zip(prompts, self._most_alike(prompts), strict=True):
            gains = first and _shared(prompt, first[-1]) >= known + WORTH_A_PASS
            (others if gains else first).append(prompt)
        return first, others

    def _most_alike(self, prompts: Iterable[Prompt]) -> list[tuple[int, Prompt]]:
        """How many first tokens each prompt shares with a kept one, and with which."""
        kept = sorted(self._kept)
        best = []
        for prompt in prompts:
            # In sorted order, what shares most with a prompt is one of its neighbours.
            at = bisect(kept, prompt)
            neighbours = kept[max(0, at - 1) : at + 1]
            best.append(max(((_shared(prompt, other), other) for other in neighbours), default=(0, _NO_PROMPT)))
        return best

    def _prefill(self, prompts: Sequence[Prompt]) -> None:
        """Prefill prompts, in passes of those that share equally much and are of like length."""
        alike = zip(prompts, self._most_alike(prompts), strict=True)
        plans = sorted((shared, len(prompt.ids), prompt, other) for prompt, (shared, other) in alike)
        for shared, planned in groupby(plans, key=lambda plan: plan[0]):
            batch: list[tuple[Prompt, Prompt]] = []
            for _, length, prompt, other in planned:
                # The newest prompt of a pass is its longest, so the others are padded to it.
                if batch and (len(batch) + 1) * (length - shared) > PASS_TOKENS:
                    self._prefill_batch(batch, shared)
                    batch = []
                batch.append((prompt, other))
            self._prefill_batch(batch, shared)

    def _prefill_batch(self, batch: Sequence[tuple[Prompt, Prompt]], shared: int) -> None:
        """Prefill prompts of which each shares so many first tokens with a kept one.

        They are padded on the right: under a causal mask nothing looks at the padding,
        and what stands in the cache there is beyond the prefix's length.
        """
        cache = DynamicCache()
        if shared:
            sources = [self._kept[other] for _, other in batch]
            for layer in range(len(sources[0].keys)):
                keys = torch.stack([source.keys[layer][:, :shared] for source in sources])
                values = torch.stack([source.values[layer][:, :shared] for source in sources])
                cache.update(keys, values, layer)
        lengths = [len(prompt.ids) - shared for prompt, _ in batch]
        padded = [
            [*prompt.ids[shared:], *[0] * (max(lengths) - length)]
            for (prompt, _), length in zip(batch, lengths, strict=True)
        ]
        ends = sorted(set(lengths))
        device = self._model.device
        with self._mixing.rows([prompt.adapter or None for prompt, _ in batch]):
            logits_BEV = self._model(
                input_ids=torch.tensor(padded, device=device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor(ends, device=device) - 1,
            ).logits
        layers: list[Any] = cache.layers  # every one is a plain growing layer
        for row, ((prompt, _), length) in enumerate(zip(batch, lengths, strict=True)):
            self._kept[prompt] = Prefix(
                length=len(prompt.ids),
                keys=[layer.keys[row] for layer in layers],
                values=[layer.values[row] for layer in layers],
                logits_V=logits_BEV[row, ends.index(length)].float(),
            )


_NO_PROMPT = Prompt("", ())


def _shared(prompt: Prompt, other: Prompt) -> int:
    """How many first tokens two prompts share, in whole steps; not the last, whose logits are wanted."""
    if prompt.adapter != other.adapter:
        return 0
    most = min(len(prompt.ids) - 1, len(other.ids))
    same = next((index for index in range(most) if prompt.ids[index] != other.ids[index]), most)
    return same - same % SHARED_STEP
