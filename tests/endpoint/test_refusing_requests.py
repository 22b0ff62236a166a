"""What the endpoint refuses, and in which words."""

from __future__ import annotations

import httpx
import openai
import pytest

from tracetune.errors import EndpointError, InvalidInput
from tracetune.trainers.endpoint import LocalEndpoint
from tracetune.types import Completion

CHAT = {"model": "policy", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}


class Nothing:
    """A journal that nothing may be written to."""

    def completion(self, completion: Completion) -> None:
        raise AssertionError(f"a refused request was decoded: {completion}")

    policy = batch = job = completion


@pytest.fixture(scope="module")
def endpoint(model, tokenizer):
    """One endpoint for all requests: a refusal leaves nothing behind."""
    with LocalEndpoint(model, tokenizer, version="try@0", journal=Nothing(), threads=1) as endpoint:
        yield endpoint


def post(endpoint, body, path="/chat/completions", **options):
    """The answer to a request that no client would send."""
    headers = {"authorization": f"Bearer {endpoint.policy.api_key}"}
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(endpoint.policy.base_url + path, **{"headers": headers, **content, **options})


@pytest.mark.parametrize(
    ("change", "param", "code", "words"),
    [
        ({"functions": [{}]}, "functions", "unsupported_parameter", "leave it out"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter", "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_parameter", "0.5"),
        ({"store": True}, "store", "unsupported_parameter", "store"),
        ({"min_p": 0.1}, "min_p", "unknown_parameter", "does not know the parameter 'min_p'"),
        ({"messages": None}, "messages", "invalid_value", "messages"),
        ({"messages": []}, "messages", "invalid_value", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "invalid_value", "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages",
            "invalid_value",
            "image_url",
        ),
        ({"temperature": "hot"}, "temperature", "invalid_value", "'hot'"),
        ({"temperature": -1}, "temperature", "invalid_value", "-1"),
        ({"top_p": 0}, "top_p", "invalid_value", "top_p"),
        ({"seed": 2**63 - 1}, "seed", "invalid_value", "seed"),
        ({"n": 0}, "n", "invalid_value", "n"),
        ({"n": 1000}, "n", "invalid_value", "128"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "max_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", None, "at most 4"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value", "logprobs"),
        ({"model": None}, "model", "missing_required_parameter", "model"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(endpoint, change, param, code, words):
    """Each gets 400, the name of the parameter and what is wrong with it, and nothing is decoded."""
    answer = post(endpoint, {**CHAT, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["code"] == code
    assert words in error["message"]


@pytest.mark.parametrize(
    ("body", "words"), [(b"{half", "not JSON"), (b"[1]", "not a JSON object"), (b"", "not JSON"), (b"\xff", "not JSON")]
)
def test_a_body_that_is_no_json_object_is_refused(endpoint, body, words):
    """Broken bodies get 400 in the same shape as other errors."""
    answer = post(endpoint, body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_huge_body_is_refused(endpoint):
    """More than the limit gets 413, whether or not the client says how long it is."""
    answer = post(endpoint, b" " * (9 * 1024 * 1024))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_prompt_that_is_too_long_is_refused_with_numbers(client):
    """The client learns the context length, the prompt's length and what would fit."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "w1 " * 300}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"
    assert "256 tokens" in caught.value.message
    assert "302" in caught.value.message


@pytest.mark.parametrize(
    ("prompt", "words"), [("", "empty"), ([], "prompt"), ([7, 9999], "outside"), ([7, -1], "outside"), ([[]], "empty")]
)
def test_a_plain_prompt_without_usable_tokens_is_refused(endpoint, prompt, words):
    """Empty prompts and token ids that the model does not have get 400."""
    answer = post(endpoint, {"model": "policy", "prompt": prompt}, "/completions")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert words in answer.json()["error"]["message"]


def test_an_unknown_model_is_refused_and_the_way_out_is_named(client):
    """A model that is neither the policy nor forwarded gets 404 and the setting that would map it."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**{**CHAT, "model": "gpt-4o"})
    assert caught.value.code == "model_not_found"
    assert "models={'gpt-4o': 'policy'}" in caught.value.message


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer ü".encode()}])
def test_a_wrong_key_is_refused(endpoint, path, headers):
    """Every way in needs the key."""
    answer = post(endpoint, CHAT, path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(endpoint.policy.base_url + "/models", headers=headers).status_code == 401


def test_other_addresses_are_not_found_in_the_same_shape(endpoint):
    """What is not served says so as OpenAI's clients expect it."""
    answer = post(endpoint, CHAT, "/embeddings")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert "/v1/embeddings" in answer.json()["error"]["message"]
    for answer in (httpx.get(endpoint.policy.base_url + "/nothing"), httpx.put(endpoint.policy.base_url + "/models")):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_chat_without_a_template_is_refused(serve, connect, tokenizer, monkeypatch):
    """A model that knows no chat says so, and still completes plain text."""
    monkeypatch.setattr(tokenizer, "chat_template", None)
    client = connect(serve())
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(**CHAT)
    assert client.completions.create(model="policy", prompt="w1", max_tokens=2).usage.completion_tokens >= 1


def test_a_template_that_refuses_is_heard(serve, connect, tokenizer, monkeypatch):
    """What a chat template raises reaches the client, as its own mistake."""
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(openai.BadRequestError, match="roles must alternate"):
        connect(serve()).chat.completions.create(**CHAT)


def test_settings_that_make_no_sense_are_refused_early(model, tokenizer, journal):
    """A mapping to another model, no rows, a port in use and a second start are told at once."""
    settings = {"version": "v", "journal": journal}
    with pytest.raises(InvalidInput, match="maps 'a' to 'b'"):
        LocalEndpoint(model, tokenizer, models={"a": "b"}, **settings)
    with pytest.raises(InvalidInput, match="max_rows is 0"):
        LocalEndpoint(model, tokenizer, max_rows=0, **settings)
    with LocalEndpoint(model, tokenizer, **settings) as endpoint:
        port = int(endpoint.policy.base_url.split(":")[-1].removesuffix("/v1"))
        with pytest.raises(EndpointError, match=f"can't listen at 127.0.0.1:{port}"):
            LocalEndpoint(model, tokenizer, port=port, **settings).start()
        with pytest.raises(EndpointError, match="started before"):
            endpoint.start()
    with pytest.raises(EndpointError, match="start it first"):
        _ = LocalEndpoint(model, tokenizer, **settings).policy


def test_a_model_with_sliding_windows_is_refused(model, tokenizer, journal, monkeypatch):
    """A model whose attention forgets can't be cached as rows here, and says so before anything is served."""
    monkeypatch.setattr(model.config, "layer_types", ["full_attention", "sliding_attention"], raising=False)
    with pytest.raises(EndpointError, match="sliding_attention"):
        LocalEndpoint(model, tokenizer, version="v", journal=journal)
