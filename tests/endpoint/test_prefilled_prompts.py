"""Prompts whose beginnings are shared are computed once, and give what they give alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracetune.trainers.endpoint import prefixes as prefixes_module
from tracetune.trainers.endpoint.mixing import AdapterMixing
from tracetune.trainers.endpoint.prefixes import Prefixes, Prompt

HEADER = tuple(6 + index * 5 % 60 for index in range(48))


@pytest.fixture
def prefilled(model, monkeypatch):
    """The shapes of the forward passes that were made."""
    shapes = []
    forward = type(model).forward

    def counting(self, input_ids, **inputs):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", counting)
    return shapes


def check(model, prompt, prefix):
    """A prefix holds what a pass over its prompt alone gives."""
    alone = model(torch.tensor([prompt.ids]), use_cache=True)
    assert prefix.length == len(prompt.ids)
    # Other shapes of a pass are added up in another order.
    torch.testing.assert_close(prefix.logits_V, alone.logits[0, -1], atol=5e-5, rtol=1e-5)
    for layer, (keys, values, *_) in enumerate(alone.past_key_values):
        torch.testing.assert_close(prefix.keys[layer][:, : len(prompt.ids)], keys[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(prefix.values[layer][:, : len(prompt.ids)], values[0], atol=1e-5, rtol=1e-5)


@given(
    asked=st.lists(
        st.lists(
            st.tuples(st.sampled_from([0, 5, 16, 40, 48]), st.lists(st.integers(6, 8), min_size=1, max_size=40)).map(
                lambda parts: Prompt("", (*HEADER[: parts[0]], *parts[1]))
            ),
            min_size=1,
            max_size=6,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_every_prefix_is_what_its_prompt_gives_alone(model, asked):
    """However prompts overlap, in one call or in later ones, keys, values and logits are their own."""
    prefixes = Prefixes(model, AdapterMixing(model), kept_tokens=4096)
    with torch.no_grad():
        for prompts in asked:
            for prompt, prefix in zip(prompts, prefixes.of(prompts), strict=True):
                check(model, prompt, prefix)


def test_a_shared_beginning_is_computed_once(model, prefilled):
    """The first prompt is computed whole; the others, now and later, only from where they differ."""
    prefixes = Prefixes(model, AdapterMixing(model), kept_tokens=4096)
    with torch.no_grad():
        prefixes.of([Prompt("", (*HEADER, 7 + index, 9)) for index in range(5)])
        assert prefilled == [(1, 50), (4, 2)]
        prefixes.of([Prompt("", (*HEADER, 30, 31, 32)), Prompt("", (*HEADER, 7, 9))])
        assert prefilled[2:] == [(1, 3)]


def test_beginnings_of_different_length_are_each_computed_once(model, prefilled):
    """A header that all share, and under it a longer one that some share, in one burst."""
    examples = [tuple(40 + kind for _ in range(40)) for kind in range(3)]
    with torch.no_grad():
        found = Prefixes(model, AdapterMixing(model), kept_tokens=4096).of(
            [Prompt("", (*HEADER, *examples[index // 2], 6 + index, 9)) for index in range(6)]
        )
        assert prefilled == [(1, 90), (2, 42), (1, 10), (2, 10)]
    assert [prefix.length for prefix in found] == [90] * 6


def test_prompts_with_nothing_in_common_are_computed_in_one_pass(model, prefilled):
    """Prompts of like length are padded together."""
    with torch.no_grad():
        Prefixes(model, AdapterMixing(model), kept_tokens=4096).of(
            [Prompt("", (6 + index,) * (3 + index)) for index in range(8)]
        )
    assert prefilled == [(8, 10)]


def test_passes_and_kept_prompts_are_bounded(model, prefilled, monkeypatch):
    """No pass exceeds its tokens, and the least recently asked for prompts are forgotten."""
    monkeypatch.setattr(prefixes_module, "PASS_TOKENS", 20)
    prefixes = Prefixes(model, AdapterMixing(model), kept_tokens=20)
    prompts = [Prompt("", (6 + index,) * 8) for index in range(5)]
    with torch.no_grad():
        found = prefixes.of(prompts)
        assert prefilled == [(2, 8), (2, 8), (1, 8)]
        assert [prompt in prefixes for prompt in prompts] == [False, False, False, True, True]
        for prompt, prefix in zip(prompts, found, strict=True):
            check(model, prompt, prefix)


def test_nothing_is_known_after_clear(model, prefilled):
    """When the weights change, prompts are computed anew."""
    prefixes = Prefixes(model, AdapterMixing(model), kept_tokens=4096)
    with torch.no_grad():
        prefixes.of([Prompt("", HEADER)])
        prefixes.clear()
        prefixes.of([Prompt("", HEADER)])
    assert prefilled == [(1, 48), (1, 48)]
