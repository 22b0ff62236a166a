"""The budget of keys and values: rows wait and pause, and nobody can tell from what they say."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tracetune.errors import InvalidInput
from tracetune.trainers.endpoint import LocalEndpoint, cache
from tracetune.trainers.endpoint.cache import Prefix, RowCache

PROMPTS = [[6 + (seed * 7 + place * place) % 60 for place in range(2 + seed * 4)] for seed in range(10)]


def ask_all(client):
    """One completion of each prompt at the same time, of lengths that differ."""

    def ask(index):
        return client.completions.create(
            model="policy", prompt=PROMPTS[index], max_tokens=20 + 15 * (index % 4), seed=index, temperature=2.0
        ).choices[0]

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return [(choice.text, choice.finish_reason) for choice in pool.map(ask, range(len(PROMPTS)))]


@pytest.fixture
def buffers(monkeypatch):
    """How many positions the buffers of a layer have had together, each time they were made."""
    sizes = []
    resized = cache._resized

    def counting(buffer, slots, positions):
        sizes.append(slots * positions)
        return resized(buffer, slots, positions)

    monkeypatch.setattr(cache, "_resized", counting)
    return sizes


@pytest.mark.parametrize("cache_tokens", [1, 130, 300, 700])
def test_rows_that_do_not_fit_wait_or_pause_and_end_as_they_would_have(
    serve, connect, journal, buffers, model, cache_tokens
):
    """Under any budget each row has the text and log-probabilities it has alone, and the buffers keep within it."""
    expected = ask_all(connect(serve()))
    journal.completions.clear()
    buffers.clear()
    assert ask_all(connect(serve(cache_tokens=cache_tokens))) == expected
    one_row = max(len(record.prompt_token_ids) + len(record.completion_token_ids) for record in journal.completions)
    assert max(buffers) <= max(cache_tokens, one_row)
    for record in journal.completions:
        ids = [*record.prompt_token_ids, *record.completion_token_ids]
        with torch.no_grad():
            logits_TV = model(torch.tensor([ids])).logits[0, len(record.prompt_token_ids) - 1 : -1] / 2.0
        logprobs_T = logits_TV.log_softmax(-1).gather(1, torch.tensor(record.completion_token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(record.completion_logprobs), logprobs_T, atol=2e-5, rtol=1e-5)


def test_rows_that_are_paused_are_finished_before_the_weights_change(serve, connect, journal):
    """Who asks for the model alone gets it when paused rows are done, and each has one version."""
    endpoint = serve(cache_tokens=300)
    client = connect(endpoint)
    begun = threading.Event()

    def stream(index):
        chunks = client.completions.create(
            model="policy", prompt=PROMPTS[index], max_tokens=100, seed=index, temperature=2.0, stream=True
        )
        for _ in chunks:
            begun.set()

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        done = [pool.submit(stream, index) for index in range(len(PROMPTS))]
        assert begun.wait(30)
        with endpoint.exclusive():
            finished = {record.response_id for record in journal.completions}
            endpoint.publish("try@1")
        for each in done:
            each.result(30)
    assert {record.response_id for record in journal.completions if record.policy_version == "try@0"} == finished
    assert len(journal.completions) == len(PROMPTS)


def test_buffers_take_the_shape_that_rows_need(model):
    """Many short rows and later one long one: the buffers never hold as many of the long one's length."""
    rows = RowCache(budget=1000)

    def prefix(length):
        states = [torch.full((2, length, 8), float(length))]
        return Prefix(length, states, states, torch.zeros(1))

    rows.admit([prefix(10) for _ in range(50)])
    rows.keep([7])
    rows.admit([prefix(400)])
    keys = rows._keys[0]
    assert keys.shape[0] * keys.shape[2] <= 1000
    assert [float(keys[slot, 0, length - 1, 0]) for slot, length in enumerate((10, 400))] == [10.0, 400.0]


def test_a_budget_of_nothing_is_refused(model, tokenizer, journal):
    """At least one token must be held."""
    with pytest.raises(InvalidInput, match="cache_tokens is 0"):
        LocalEndpoint(model, tokenizer, version="v", journal=journal, cache_tokens=0)
