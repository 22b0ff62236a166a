"""The decode loop against transformers' own `generate` and forward pass."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PROMPTS = [[6 + (seed * 7 + place * place) % 60 for place in range(1 + seed * 3)] for seed in range(8)]


def ask(client, prompt, **options):
    """One plain completion of a prompt."""
    return client.completions.create(model="policy", prompt=prompt, **{"max_tokens": 24, **options})


def together(client, requests):
    """Send requests at the same time; gives their responses in order."""
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: ask(client, **request), requests))


def by_response(journal):
    """The records by response id and choice."""
    return {(record.response_id, record.choice): record for record in journal.completions}


def forward_logprobs(model, record, temperature=1.0):
    """What a plain forward pass says of a recorded completion's tokens."""
    prompt, completion = list(record.prompt_token_ids), list(record.completion_token_ids)
    with torch.no_grad():
        logits_TV = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].float()
    return (logits_TV / temperature).log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_greedy_rows_of_one_batch_are_what_padded_generate_gives(model, tokenizer, client, journal):
    """Prompts of different length in one batch get, token by token, what `generate` gives them."""
    responses = together(client, [{"prompt": prompt, "temperature": 0} for prompt in PROMPTS])

    padded = tokenizer.pad({"input_ids": PROMPTS}, padding_side="left", return_tensors="pt")
    generated = model.generate(**padded, max_new_tokens=24, do_sample=False)[:, padded["input_ids"].shape[1] :]
    expected = []
    for row in generated.tolist():
        end = row.index(1) + 1 if 1 in row else len(row)
        expected.append(row[:end])
    records = by_response(journal)
    assert [list(records[response.id, 0].completion_token_ids) for response in responses] == expected
    assert [response.choices[0].text for response in responses] == tokenizer.batch_decode(
        expected, skip_special_tokens=True
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_recorded_logprobs_are_those_of_a_plain_forward_pass(model, client, journal, temperature):
    """Every sampled token's log-probability is that of the tempered distribution, whatever shared its batch."""
    together(client, [{"prompt": prompt, "temperature": temperature, "n": 2} for prompt in PROMPTS])
    assert len(journal.completions) == 16
    for record in journal.completions:
        torch.testing.assert_close(
            torch.tensor(record.completion_logprobs),
            forward_logprobs(model, record, temperature),
            atol=1e-5,
            rtol=1e-5,
        )


def test_greedy_logprobs_are_those_of_temperature_1(model, client, journal):
    """A greedy completion is recorded with the log-probabilities of the undivided distribution."""
    ask(client, PROMPTS[3], temperature=0)
    (record,) = journal.completions
    torch.testing.assert_close(
        torch.tensor(record.completion_logprobs), forward_logprobs(model, record), atol=1e-5, rtol=1e-5
    )


def test_a_long_completion_outgrows_its_buffers_and_stays_exact(model, client, journal):
    """Growing and compacting the cache changes nothing in the rows that stay."""
    lengths = [3, 180, 9, 60, 1, 120]
    together(
        client,
        [
            {"prompt": PROMPTS[index], "max_tokens": length, "seed": index, "temperature": 2.0}
            for index, length in enumerate(lengths)
        ],
    )
    assert max(len(record.completion_token_ids) for record in journal.completions) > 64
    for record in journal.completions:
        expected = forward_logprobs(model, record, 2.0)
        torch.testing.assert_close(torch.tensor(record.completion_logprobs), expected, atol=2e-5, rtol=1e-5)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_seeded_row_does_not_depend_on_its_batch(client, data):
    """The same prompt, sampling and seed give the same text alone and among any others."""
    request = st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(PROMPTS),
            "temperature": st.sampled_from([0.0, 0.8, 1.0, 1.5]),
            "top_p": st.sampled_from([0.6, 1.0]),
            "max_tokens": st.integers(1, 20),
            "seed": st.integers(0, 5),
        }
    )
    requests = data.draw(st.lists(request, min_size=2, max_size=8))
    alone = [ask(client, **request).choices[0].text for request in requests]
    assert [response.choices[0].text for response in together(client, requests)] == alone


def test_equal_prompts_that_come_together_are_prefilled_once(model, client, monkeypatch):
    """Sixteen concurrent requests with one prompt cost the prompt once."""
    prefilled = []
    forward = type(model).forward

    def counting(self, input_ids, **inputs):
        if input_ids.shape[1] > 1:
            prefilled.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", counting)
    together(client, [{"prompt": PROMPTS[5], "seed": seed} for seed in range(16)])
    assert prefilled == [(1, len(PROMPTS[5]))]


def test_more_rows_than_max_rows_wait_their_turn(serve, connect, journal):
    """A request for more choices than are decoded at once gets them all."""
    response = ask(connect(serve(max_rows=3)), PROMPTS[2], n=10, seed=1, temperature=1.5)
    assert [choice.index for choice in response.choices] == list(range(10))
    assert sorted(record.choice for record in journal.completions) == list(range(10))


def test_choices_of_a_seeded_request_differ_and_repeat(client):
    """With a seed, n choices are not n copies, and the same request gives the same choices."""
    first, second = (ask(client, PROMPTS[4], n=4, seed=7, temperature=1.5) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices]
    assert len(set(texts)) == 4
    assert texts[0] == ask(client, PROMPTS[4], seed=7, temperature=1.5).choices[0].text


def test_requests_without_a_seed_are_not_repeated_by_the_program_seeding_random(client):
    """Sampling has a source of its own: what a program does to `random` and torch does not matter."""
    texts = set()
    for _ in range(3):
        random.seed(0)
        torch.manual_seed(0)
        texts.add(ask(client, PROMPTS[4], temperature=1.5).choices[0].text)
    assert len(texts) == 3
