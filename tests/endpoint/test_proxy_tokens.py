"""A server that returns token ids is recorded, choice by choice, and its clients see nothing of it."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack

import httpx
import openai
import pytest
from endpoint.upstreams import says, scripted
from endpoint.vllm_like import END, WORDS, VllmLike, logprobs, serving

from tracetune.errors import TracetuneWarning
from tracetune.trainers.endpoint import ProxyEndpoint
from tracetune.types import Sampling

HELLO = [{"role": "user", "content": "w2 w3 w4"}]
HEADERS = {"x-tracetune-call": "call-1", "x-tracetune-module": "hop"}
# What a request is given so that the model's own configuration does not count.
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "top_k": -1}


@pytest.fixture
def server():
    """A server as vLLM is."""
    return VllmLike()


@pytest.fixture
def start(server, journal):
    """Starts recording proxies in front of the server, and gives them with their client and the service."""
    with ExitStack() as stack:
        service = stack.enter_context(serving(server))

        def begin(**settings):
            settings = {"upstream_model": "base", "version": "try@0", "records_tokens": True, **settings}
            endpoint = stack.enter_context(ProxyEndpoint(service.upstream, journal=journal, **settings))
            policy = endpoint.policy
            client = openai.OpenAI(base_url=policy.base_url, api_key=policy.api_key, max_retries=0)
            return endpoint, stack.enter_context(client), service

        yield begin


def text_of(token_ids) -> str:
    """What these tokens say."""
    return " ".join(WORDS[token] for token in token_ids if token != END)


def expected_logprobs(prompt_ids, token_ids, temperature) -> list[float]:
    """The model's own log-probabilities of these tokens."""
    before = [prompt_ids[-1], *token_ids[:-1]]
    pairs = zip(before, token_ids, strict=True)
    return [logprobs("base", last, temperature)[token] for last, token in pairs]


def check(record, **said) -> None:
    """A record is right in all that it says."""
    assert record.completion_logprobs == tuple(
        expected_logprobs(record.prompt_token_ids, record.completion_token_ids, record.sampling.temperature)
    )
    assert record.text == text_of(record.completion_token_ids)
    assert record.finish_reason == ("stop" if record.completion_token_ids[-1] == END else "length")
    assert record.started_at < record.ended_at
    assert {name: getattr(record, name) for name in said} == said


def test_each_choice_of_a_chat_is_recorded(start, journal):
    """Ids, log-probabilities, text and headers of all choices are written; the client gets a plain answer."""
    endpoint, client, service = start()
    reply = client.chat.completions.create(
        model="policy", messages=HELLO, n=3, max_tokens=5, temperature=0.5, extra_headers=HEADERS
    )
    assert len(journal.completions) == 3
    for index, (record, choice) in enumerate(zip(journal.completions, reply.choices, strict=True)):
        check(
            record,
            response_id=reply.id,
            choice=index,
            model="policy",
            policy_version="try@0",
            prompt_token_ids=(2, 3, 4),
            text=choice.message.content,
            finish_reason=choice.finish_reason,
            sampling=Sampling(temperature=0.5, top_p=1.0, max_tokens=5),
            call_id="call-1",
            module="hop",
        )
        assert choice.logprobs is None
    said = json.dumps(reply.model_dump())
    assert reply.model == "policy"
    assert "token_ids" not in said
    (asked,) = service.asked
    assert asked.body == {
        "model": "base",
        "messages": HELLO,
        "n": 3,
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 1.0,
        "return_token_ids": True,
        "logprobs": True,
        **NEUTRAL,
    }
    assert endpoint.completions_served == 3


def test_each_choice_of_a_stream_is_recorded_before_its_end(start, journal):
    """When a choice's last chunk arrives its record is there, and the chunks have no ids and no log-probabilities."""
    _, client, _ = start()
    stream = client.chat.completions.create(
        model="policy", messages=HELLO, n=2, max_tokens=7, stream=True, stream_options={"include_usage": True}
    )
    texts, ended = {0: "", 1: ""}, []
    for chunk in stream:
        assert "token_ids" not in json.dumps(chunk.model_dump())
        assert chunk.model == "policy"
        for choice in chunk.choices:
            assert choice.logprobs is None
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason is not None:
                ended.append(choice.index)
                assert set(ended) <= {record.choice for record in journal.completions}
    assert chunk.usage.total_tokens == 9
    for record in journal.completions:
        check(record, prompt_token_ids=(2, 3, 4), text=texts[record.choice], response_id=chunk.id)


@pytest.mark.parametrize("stream", [False, True])
def test_plain_completions_of_many_prompts_are_recorded(start, journal, stream):
    """Each choice has the prompt that it answers; log-probabilities are asked for without alternatives."""
    _, client, service = start()
    answer = client.completions.create(model="policy", prompt=["w2", "w3 w4"], n=2, max_tokens=4, stream=stream)
    for _ in answer if stream else ():
        pass
    records = sorted(journal.completions, key=lambda record: record.choice)
    prompts = [(2,), (2,), (3, 4), (3, 4)]
    for index, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
        check(record, choice=index, prompt_token_ids=prompt, call_id=None, module=None)
    assert service.asked[0].body["logprobs"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_asks_for_tokens_gets_them(start, journal, stream):
    """Ids and log-probabilities stay in the answer where the client asked for them itself."""
    _, client, _ = start()
    options = {"model": "policy", "messages": HELLO, "max_tokens": 4, "logprobs": True}
    answer = client.chat.completions.create(**options, stream=stream, extra_body={"return_token_ids": True})
    parts = [part.model_dump() for part in (list(answer) if stream else [answer])]
    (record,) = journal.completions
    choices = [choice for part in parts for choice in part["choices"]]
    assert parts[0]["prompt_token_ids"] == [2, 3, 4]
    assert [token for choice in choices for token in choice.get("token_ids") or ()] == list(record.completion_token_ids)
    shown = [token["logprob"] for choice in choices for token in (choice["logprobs"] or {"content": []})["content"]]
    assert shown == list(record.completion_logprobs)


def test_training_samples_from_the_whole_distribution(start, journal):
    """Under an override, whatever bends or cuts the distribution is switched off; what it sets is recorded."""
    endpoint, client, service = start()
    endpoint.sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=3)
    bending = {"top_k": 2, "min_p": 0.5, "repetition_penalty": 1.3, "presence_penalty": 1.0}
    client.chat.completions.create(model="policy", messages=HELLO, temperature=0, seed=1, extra_body=bending)
    (record,) = journal.completions
    check(record, sampling=Sampling(temperature=1.0, top_p=1.0, max_tokens=3))
    sent = service.asked[0].body
    assert {name: sent.get(name) for name in (*NEUTRAL, "temperature", "seed")} == {
        **NEUTRAL,
        "temperature": 1.0,
        "seed": None,
    }


@pytest.mark.parametrize(
    "bending",
    [
        {"min_p": 0.1},
        {"repetition_penalty": 1.2},
        {"logit_bias": {"5": 1}},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"choice": ["w2"]}},
        {"tool_choice": "required"},
    ],
    ids=lambda bending: next(iter(bending)),
)
def test_logprobs_of_a_bent_distribution_are_not_recorded(start, journal, bending):
    """Tokens that were drawn from another distribution than the policy's are exact, and have no log-probabilities."""
    _, client, _ = start()
    client.chat.completions.create(model="policy", messages=HELLO, max_tokens=3, extra_body=bending)
    (record,) = journal.completions
    assert record.completion_logprobs is None
    assert record.text == text_of(record.completion_token_ids)
    assert record.prompt_token_ids == (2, 3, 4)


def test_a_server_without_ids_is_warned_of_once(start, server, journal):
    """The answer passes, nothing is recorded, and one warning says what to do."""
    server.returns_ids = False
    endpoint, client, _ = start()

    def ask(stream):
        answer = client.chat.completions.create(model="policy", messages=HELLO, max_tokens=3, stream=stream)
        return list(answer) if stream else [answer]

    with pytest.warns(TracetuneWarning, match=r"returns no token ids.*vLLM 0\.10\.2 or newer") as caught:
        answers = [ask(stream) for stream in (False, True, False)]
    assert all(answers)
    assert len(caught) == 1
    assert journal.completions == []
    assert endpoint.completions_served == 3


def test_an_answer_that_is_no_completion_passes_as_it_is(journal):
    """What cannot be read is passed on, and counts as a server without ids."""
    with scripted(says(b"<html>hello</html>", kind="text/html")) as service:
        settings = {"upstream_model": "base", "version": "try@0", "journal": journal, "records_tokens": True}
        with ProxyEndpoint(service.upstream, **settings) as endpoint:
            address, headers = endpoint.policy.base_url, {"authorization": f"Bearer {endpoint.policy.api_key}"}
            body = {"model": "policy", "messages": HELLO}
            with pytest.warns(TracetuneWarning, match="no token ids"):
                answer = httpx.post(address + "/chat/completions", json=body, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"<html>hello</html>")
    assert journal.completions == []


def test_the_servers_refusal_is_passed_on(start, journal):
    """An error of the server reaches the client as the server wrote it, and nothing is recorded."""
    _, client, _ = start(upstream_model="gone")
    with pytest.raises(openai.NotFoundError, match="The model `gone` does not exist"):
        client.chat.completions.create(model="policy", messages=HELLO)
    assert journal.completions == []


def test_a_stream_that_its_client_leaves_is_recorded_as_cancelled(journal):
    """What had come of a choice when its client left is written, as the endpoint of a local model does."""
    left = threading.Event()

    def endless(handler, body):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        choice = {"index": 0, "delta": {"content": "w5"}, "token_ids": [5], "finish_reason": None}
        choice["logprobs"] = {"content": [{"token": "w5", "logprob": -0.5}]}
        chunk = {"id": "c-1", "model": "base", "choices": [choice], "prompt_token_ids": [2]}
        handler.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        left.wait(30)
        handler.close_connection = True

    settings = {"upstream_model": "base", "version": "try@0", "journal": journal, "records_tokens": True}
    with scripted(endless) as service, ProxyEndpoint(service.upstream, **settings) as endpoint:
        policy = endpoint.policy
        with openai.OpenAI(base_url=policy.base_url, api_key=policy.api_key, max_retries=0) as client:
            with client.chat.completions.create(model="policy", messages=HELLO, stream=True) as stream:
                next(stream)
            with journal.written:
                assert journal.written.wait_for(lambda: journal.completions, timeout=30)
        left.set()
        assert endpoint.exclusively(lambda: True)
    (record,) = journal.completions
    assert (record.finish_reason, record.completion_token_ids) == ("cancelled", (5,))
    assert (record.completion_logprobs, record.response_id) == ((-0.5,), "c-1")


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_that_was_not_recorded_is_not_passed_off_as_answered(start, journal, monkeypatch, stream):
    """A journal that fails is heard by the client, and the endpoint goes on."""
    _, client, _ = start()

    def full(completion):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(journal, "completion", full)
        with pytest.raises(openai.APIError, match="No space left on device"):
            list(client.chat.completions.create(model="policy", messages=HELLO, stream=stream))
    assert client.chat.completions.create(model="policy", messages=HELLO).choices
