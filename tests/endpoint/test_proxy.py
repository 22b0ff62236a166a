"""A policy that answers elsewhere: its requests go there under its own name, and answers come back as they are."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import openai
import pytest
from endpoint.upstreams import says, scripted

from tracetune.errors import EndpointError, InvalidInput
from tracetune.trainers.endpoint import ProxyEndpoint
from tracetune.types import Policy, Sampling, Upstream

HELLO = [{"role": "user", "content": "w1 w2 w3"}]
ANSWER = b'{"id": "r-1", "object": "chat.completion",  "model": "big-2026", "choices": [], "odd": 1}'


@pytest.fixture
def proxy(journal):
    """Starts proxies, and stops them when the test is over."""
    with ExitStack() as stack:

        def start(upstream, **settings) -> ProxyEndpoint:
            settings = {"upstream_model": "big", "version": "try@0", "journal": journal, **settings}
            return stack.enter_context(ProxyEndpoint(upstream, **settings))

        yield start


def ask(endpoint, path="/chat/completions", key=None, headers=(), **body) -> httpx.Response:
    """One request to an endpoint's address."""
    policy = endpoint.policy
    headers = {"authorization": f"Bearer {key or policy.api_key}", **dict(headers)}
    return httpx.post(policy.base_url + path, json={"model": "policy", "messages": HELLO, **body}, headers=headers)


def test_the_policy_is_asked_under_its_upstream_name(proxy):
    """Path, body and headers go on but for model, key and our own headers; the answer comes back byte for byte."""
    with scripted(says(ANSWER, x_request_id="r-9")) as service:
        endpoint = proxy(service.upstream)
        tools = [{"type": "function", "function": {"name": "look"}}]
        answer = ask(endpoint, "/chat/completions?a=b", headers={"x-tracetune-call": "c", "x-odd": "1"}, tools=tools)
        assert (answer.status_code, answer.content) == (200, ANSWER)
        assert (answer.headers["content-type"], answer.headers["x-request-id"]) == ("application/json", "r-9")
        (asked,) = service.asked
        assert asked.path == "/v1/chat/completions?a=b"
        assert asked.body == {"model": "big", "messages": HELLO, "tools": tools}
        assert (asked.headers["authorization"], asked.headers["x-odd"]) == ("Bearer upstream-key", "1")
        assert "x-tracetune-call" not in asked.headers
        assert endpoint.completions_served == 1


def test_a_published_model_is_the_next_one_asked(proxy):
    """A new version moves the version, and the upstream's name where it has a new one; all else stays."""
    with scripted(says(ANSWER)) as service:
        endpoint = proxy(service.upstream, name="student", models={"gpt-4o-mini": "student"})
        before = endpoint.policy
        assert before == Policy(before.base_url, before.api_key, "student", "try@0")
        ask(endpoint, model="student")
        endpoint.publish("try@1", "big:tuned")
        ask(endpoint, model="gpt-4o-mini")
        endpoint.publish("try@2")
        ask(endpoint, model="student")
        assert [asked.body["model"] for asked in service.asked] == ["big", "big:tuned", "big:tuned"]
        assert endpoint.policy == Policy(before.base_url, before.api_key, "student", "try@2")


def test_sampling_goes_over_what_is_asked_while_it_is_set(proxy):
    """Temperature, top_p, length and stop are replaced, seed and top_k dropped; without it nothing is touched."""
    wishes = {"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 1, "max_completion_tokens": 9, "stop": "a", "n": 2}
    with scripted(says(ANSWER)) as service:
        endpoint = proxy(service.upstream)
        ask(endpoint, **wishes)
        endpoint.sampling = Sampling(temperature=1.0, top_p=1.0)
        ask(endpoint, **wishes)
        endpoint.sampling = Sampling(temperature=0.7, max_tokens=5, stop=("b", "c"))
        ask(endpoint, **wishes)
        ask(endpoint)
        sent = [{k: v for k, v in asked.body.items() if k not in ("model", "messages")} for asked in service.asked]
        assert sent == [
            wishes,
            {"temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 9, "stop": ["a"], "n": 2},
            {"temperature": 0.7, "top_p": 0.5, "max_completion_tokens": 5, "stop": ["b", "c"], "n": 2},
            {"temperature": 0.7, "max_tokens": 5, "stop": ["b", "c"]},
        ]
        assert endpoint.completions_served == 7
        refused = ask(endpoint, temperature="hot")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")


def test_openais_client_streams_through_it(proxy, serve, connect, journal):
    """Chunks come as they are sampled, and are those that the upstream gives."""
    local = serve()
    endpoint = proxy(Upstream(local.policy.base_url, local.policy.api_key), upstream_model="policy")
    client = connect(endpoint)
    options = {"model": "policy", "messages": HELLO, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    plain = client.completions.create(model="policy", prompt=["w1", "w2"], n=2, max_tokens=2)
    assert [choice.index for choice in plain.choices] == [0, 1, 2, 3]
    assert endpoint.completions_served == 6
    # They were recorded by the one who sampled them: what a proxy does not know it does not write.
    assert len(journal.completions) == 6


def test_a_stream_is_passed_on_while_it_comes(proxy):
    """The client has the first event before the upstream has made the second."""
    read = threading.Event()

    def slowly(handler, body):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(b"data: 1\n\n")
        assert read.wait(30)
        handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True

    with scripted(slowly) as service:
        policy = proxy(service.upstream).policy
        headers = {"authorization": f"Bearer {policy.api_key}"}
        body = {"model": "policy", "messages": HELLO, "stream": True}
        with httpx.stream("POST", policy.base_url + "/chat/completions", json=body, headers=headers) as answer:
            parts = answer.iter_bytes()
            assert next(parts) == b"data: 1\n\n"
            read.set()
            assert b"".join(parts) == b"data: [DONE]\n\n"


def test_a_providers_error_is_passed_on(proxy):
    """Status, headers and body of an error are the provider's own, and count as no completion."""
    with scripted(says(b'{"error": {"message": "slow down"}}', 429, retry_after="7")) as service:
        endpoint = proxy(service.upstream)
        answer = ask(endpoint)
        assert (answer.status_code, answer.json()) == (429, {"error": {"message": "slow down"}})
        assert answer.headers["retry-after"] == "7"
        assert endpoint.completions_served == 0


def test_a_provider_that_is_not_there_is_named(proxy, connect):
    """A connection that fails gets 502 and says which address it was."""
    client = connect(proxy(Upstream("http://127.0.0.1:9/v1", api_key="k")))
    with pytest.raises(openai.InternalServerError, match=r"http://127\.0\.0\.1:9/v1 could not be reached") as caught:
        client.chat.completions.create(model="policy", messages=HELLO)
    assert caught.value.status_code == 502


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(proxy, connect):
    """A stream ends in an error that clients raise; what broke off in the middle ends before its end."""
    event = b'data: {"id": "1", "choices": []}\n\n'

    def breaks(handler, body):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(event if body.get("stream") else event + b"data: {")
        handler.close_connection = True

    with scripted(breaks) as service:
        endpoint = proxy(service.upstream)
        with pytest.raises(openai.APIError, match="broke off"):
            list(connect(endpoint).chat.completions.create(model="policy", messages=HELLO, stream=True))
        with pytest.raises(httpx.RemoteProtocolError):
            ask(endpoint)
        assert endpoint.completions_served == 0


def test_other_models_are_forwarded_or_refused(proxy):
    """A model that is neither the policy nor mapped to it goes elsewhere, else it is not found; so is a wrong key."""
    with scripted(says(ANSWER)) as service, scripted(says(b'{"judge": 1}')) as judge:
        endpoint = proxy(service.upstream, forward=judge.upstream)
        assert ask(endpoint, model="judge").json() == {"judge": 1}
        assert service.asked == []
        alone = proxy(service.upstream)
        assert [ask(alone, model=name).status_code for name in ("judge", "big")] == [404, 404]
        assert ask(alone, key="wrong").status_code == 401
        assert ask(alone, "/embeddings").status_code == 404
        assert service.asked == []


def test_nothing_is_under_way_while_the_policy_changes(proxy):
    """Exclusive work waits for requests that began, and those that come meanwhile wait for it."""
    reached, answered = threading.Event(), threading.Event()

    def waits(handler, body):
        reached.set()
        assert answered.wait(30)
        says(ANSWER)(handler, body)

    with scripted(waits) as service, ThreadPoolExecutor(3) as pool:
        endpoint = proxy(service.upstream)
        working, done = threading.Event(), threading.Event()

        def change():
            working.set()
            assert done.wait(30)
            endpoint.publish("try@1", "big:tuned")
            return "changed"

        first = pool.submit(ask, endpoint)
        assert reached.wait(30)
        changing = pool.submit(endpoint.exclusively, change)
        assert not working.wait(0.05)
        answered.set()
        assert first.result(30).status_code == 200
        assert working.wait(30)
        waiting = pool.submit(ask, endpoint)
        assert not waiting.done()
        done.set()
        assert changing.result(30) == "changed"
        assert waiting.result(30).status_code == 200
        assert [asked.body["model"] for asked in service.asked] == ["big", "big:tuned"]
    with pytest.raises(ZeroDivisionError):
        endpoint.exclusively(lambda: 1 / 0)
    assert endpoint.exclusively(lambda: 2) == 2


def test_a_client_that_leaves_is_not_waited_for(proxy):
    """When its client has gone, the request to the upstream is closed, and exclusive work can begin."""
    reached, closed = threading.Event(), threading.Event()

    def waits(handler, body):
        reached.set()
        if handler.connection.recv(1) == b"":
            closed.set()
        handler.close_connection = True

    with scripted(waits) as service:
        endpoint = proxy(service.upstream)
        policy = endpoint.policy
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                policy.base_url + "/chat/completions",
                json={"model": "policy", "messages": HELLO},
                headers={"authorization": f"Bearer {policy.api_key}"},
                timeout=httpx.Timeout(30, read=0.2),
            )
        assert reached.wait(30)
        assert closed.wait(30)
        assert endpoint.exclusively(lambda: "alone") == "alone"


def test_a_stop_tells_those_who_wait(proxy):
    """What is under way when the endpoint stops is told so, and the address is closed; stopping twice is once."""
    reached = threading.Event()

    def waits(handler, body):
        reached.set()
        handler.connection.recv(1)
        handler.close_connection = True

    with scripted(waits) as service, ThreadPoolExecutor(1) as pool:
        endpoint = proxy(service.upstream)
        asking = pool.submit(ask, endpoint)
        assert reached.wait(30)
        endpoint.stop()
        answer = asking.result(30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopped")
        with pytest.raises(httpx.ConnectError):
            ask(endpoint)
        endpoint.stop()
        with pytest.raises(EndpointError, match="started before"):
            endpoint.start()


def test_settings_that_lead_nowhere_are_refused(journal):
    """A name mapped to another model and an upstream without an address are refused before anything listens."""
    settings = {"upstream_model": "big", "version": "try@0", "journal": journal}
    with pytest.raises(InvalidInput, match="map it to that"):
        ProxyEndpoint(Upstream("http://x/v1", "k"), models={"a": "b"}, **settings)
    with pytest.raises(InvalidInput, match="base_url is 'localhost:8000'"):
        ProxyEndpoint(Upstream("localhost:8000", "k"), **settings)
