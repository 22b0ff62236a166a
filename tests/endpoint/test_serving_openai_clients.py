"""What OpenAI's own clients get from the endpoint."""

from __future__ import annotations

import dataclasses
import math

import httpx
import openai
import pytest

from tracetune.types import Completion, Sampling

HELLO = [{"role": "user", "content": "w1 w2 w3"}]
HELLO_IDS = (3, 7, 8, 9, 4)


def chat(client, **options):
    """One chat completion."""
    return client.chat.completions.create(**{"model": "policy", "messages": HELLO, "max_tokens": 12, **options})


def test_a_chat_completion_and_its_record_say_the_same(client, journal, tokenizer):
    """The journal holds what the client got: ids, text, reason, sampling, version, and who asked."""
    response = chat(
        client, seed=3, temperature=0.9, extra_headers={"x-tracetune-call": "c1", "x-tracetune-module": "hop"}
    )
    (record,) = journal.completions
    choice = response.choices[0]
    assert record == Completion(
        response_id=response.id,
        choice=0,
        model="policy",
        policy_version="try@0",
        prompt_token_ids=HELLO_IDS,
        completion_token_ids=record.completion_token_ids,
        completion_logprobs=record.completion_logprobs,
        text=choice.message.content,
        finish_reason=choice.finish_reason,
        sampling=Sampling(temperature=0.9, top_p=1.0, max_tokens=12, seed=3),
        call_id="c1",
        module="hop",
        started_at=record.started_at,
        ended_at=record.ended_at,
    )
    assert tokenizer.decode(record.completion_token_ids, skip_special_tokens=True) == record.text
    assert len(record.completion_logprobs) == len(record.completion_token_ids)
    assert 0 < record.started_at < record.ended_at
    assert (response.object, response.model, response.system_fingerprint) == ("chat.completion", "policy", "try@0")
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (5, len(record.completion_token_ids))
    assert response.usage.total_tokens == 5 + len(record.completion_token_ids)


def test_a_completion_is_recorded_before_its_client_sees_the_end(client, journal):
    """When the response is there, so is its record; and likewise at the end of a stream."""
    chat(client)
    assert len(journal.completions) == 1
    for chunk in chat(client, stream=True):
        if chunk.choices[0].finish_reason is not None:
            assert len(journal.completions) == 2


async def test_the_async_client_gets_the_same_as_the_sync_one(endpoint, client):
    """Sync and async, whole and streamed: one seed, one text."""
    expected = chat(client, seed=5).choices[0].message.content
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chat(client, seed=5, stream=True))
    async with openai.AsyncOpenAI(base_url=endpoint.policy.base_url, api_key=endpoint.policy.api_key) as asynchronous:
        whole = (await chat(asynchronous, seed=5)).choices[0].message.content
        chunks = [chunk async for chunk in await chat(asynchronous, seed=5, stream=True)]
    assert [streamed, whole, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)] == [expected] * 3


def test_a_stream_opens_with_the_role_and_ends_with_reason_and_usage(client, journal):
    """The chunks of a stream come in the order that OpenAI's have, and `n` choices each have theirs."""
    chunks = list(chat(client, seed=2, n=2, stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    *spoken, usage = chunks
    for record in journal.completions:
        mine = [c for chunk in spoken for c in chunk.choices if c.index == record.choice]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == record.text
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + [record.finish_reason]
        assert len(mine) > 3  # a piece at a time, not all at the end
    assert usage.choices == []
    assert usage.usage.prompt_tokens == 5
    assert usage.usage.completion_tokens == sum(len(record.completion_token_ids) for record in journal.completions)


def test_the_end_token_finishes_a_completion_and_is_recorded(model, serve, connect, journal, monkeypatch):
    """The end token is the last recorded token; it is not part of the text."""
    free = chat(connect(serve()), temperature=0)
    words = free.choices[0].message.content.split()
    end = journal.completions[0].completion_token_ids[3]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [1, end])
    journal.completions.clear()
    response = chat(connect(serve()), temperature=0)
    (record,) = journal.completions
    first = record.completion_token_ids.index(end)
    assert record.completion_token_ids[-1] == end
    assert record.finish_reason == response.choices[0].finish_reason == "stop"
    assert response.choices[0].message.content.split() == words[:first]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_left_out_of_the_text_and_its_tokens_are_recorded(client, journal, tokenizer, stream):
    """The text ends before the stop string; the tokens end with the one that completed it."""
    words = chat(client, temperature=0).choices[0].message.content.split()
    stop = f"{words[4]} {words[5]}"
    expected = " ".join(words).split(stop)[0]
    journal.completions.clear()
    response = chat(client, temperature=0, stop=["never said", stop], stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in response]
        text, reason = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
    else:
        text, reason = response.choices[0].message.content, response.choices[0].finish_reason
    (record,) = journal.completions
    assert (text, reason) == (record.text, record.finish_reason) == (expected, "stop")
    assert tokenizer.decode(record.completion_token_ids, skip_special_tokens=True).endswith(stop)
    assert record.sampling.stop == ("never said", stop)


def test_logprobs_are_those_of_the_record(client, journal):
    """Each token that has text comes with its recorded log-probability and its best alternatives."""
    response = chat(client, seed=1, logprobs=True, top_logprobs=3)
    (record,) = journal.completions
    content = response.choices[0].logprobs.content
    shown = len(record.completion_token_ids) - (record.finish_reason == "stop")
    assert [entry.logprob for entry in content] == list(record.completion_logprobs)[:shown]
    for entry in content:
        assert bytes(entry.bytes).decode() == entry.token
        best = [alternative.logprob for alternative in entry.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert entry.logprob <= best[0]
        assert sum(map(math.exp, best)) <= 1 + 1e-5
    chunks = list(chat(client, seed=1, logprobs=True, top_logprobs=3, stream=True))
    streamed = [entry for chunk in chunks if (logprobs := chunk.choices[0].logprobs) for entry in logprobs.content]
    assert streamed == content


def test_plain_completions_take_texts_and_token_ids(client, journal, tokenizer):
    """Several prompts, n choices of each: choices are numbered prompt by prompt."""
    response = client.completions.create(model="policy", prompt=["w1 w2", "w3"], n=2, logprobs=2, seed=0)
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    records = sorted(journal.completions, key=lambda record: record.choice)
    assert [record.prompt_token_ids for record in records] == [(7, 8), (7, 8), (9,), (9,)]
    for choice, record in zip(response.choices, records, strict=True):
        assert choice.text == record.text
        shown = len(choice.logprobs.tokens)
        assert choice.logprobs.token_logprobs == list(record.completion_logprobs)[:shown]
        assert all(len(alternatives) == 2 for alternatives in choice.logprobs.top_logprobs)
        assert choice.logprobs.text_offset[0] == 0
        assert len(record.completion_token_ids) <= 16
    assert response.usage.prompt_tokens == 3
    by_ids = client.completions.create(model="policy", prompt=[7, 8], seed=0)
    assert by_ids.choices[0].text == response.choices[0].text
    chunks = client.completions.create(model="policy", prompt=[[7, 8]], seed=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == by_ids.choices[0].text


def test_message_contents_may_be_parts_and_developers_speak_as_the_system(client, journal):
    """Text parts are put together; a received message can be sent back as it came."""
    parts = [{"type": "text", "text": "w1 "}, {"type": "text", "text": "w2"}]
    first = chat(client, messages=[{"role": "developer", "content": "w9"}, {"role": "user", "content": parts}])
    assert journal.completions[0].prompt_token_ids == (5, 15, 3, 7, 8, 4)
    received = first.choices[0].message.model_dump()
    chat(client, messages=[*HELLO, received, {"role": "user", "content": "w5"}])
    assert journal.completions[1].prompt_token_ids[-3:] == (3, 11, 4)


def test_harmless_parameters_are_taken(client):
    """What changes nothing in the text is accepted, neutral values of unsupported parameters included."""
    response = chat(
        client,
        user="me",
        metadata={"a": "b"},
        store=False,
        tools=[],
        logit_bias={},
        presence_penalty=0,
        frequency_penalty=0.0,
        response_format={"type": "text"},
        max_completion_tokens=3,
        max_tokens=None,
        extra_body={"top_k": -1},
    )
    assert response.usage.completion_tokens <= 3


def test_sampling_is_recorded_with_every_default_filled_in(client, journal):
    """What the client leaves open is what the endpoint took, room in the context included."""
    chat(client, max_tokens=None)
    chat(client, max_tokens=1000, top_p=0.9, extra_body={"top_k": 5}, stop="w3")
    assert [record.sampling for record in journal.completions] == [
        Sampling(temperature=1.0, top_p=1.0, max_tokens=251),
        Sampling(temperature=1.0, top_p=0.9, top_k=5, max_tokens=251, stop=("w3",)),
    ]


def test_the_models_are_listed_and_health_needs_no_key(serve, connect):
    """The policy and the names that are mapped to it are its models."""
    endpoint = serve(models={"gpt-4o-mini": "policy"})
    assert [model.id for model in connect(endpoint).models.list()] == ["policy", "gpt-4o-mini"]
    address = endpoint.policy.base_url.removesuffix("/v1")
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}


def test_a_mapped_name_is_answered_by_the_policy(serve, connect, journal):
    """A program that has a model's name hard-coded gets the policy, under the name it asked for."""
    response = chat(connect(serve(models={"gpt-4o-mini": "policy"})), model="gpt-4o-mini")
    assert response.model == "gpt-4o-mini"
    assert journal.completions[0].model == "gpt-4o-mini"


def test_records_are_plain_values(client, journal):
    """A record's fields can be written as JSON at once: no tensors."""
    chat(client)
    record = dataclasses.asdict(journal.completions[0])
    assert {type(token) for token in record["completion_token_ids"]} == {int}
    assert {type(logprob) for logprob in record["completion_logprobs"]} == {float}
