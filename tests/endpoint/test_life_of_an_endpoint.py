"""An endpoint over time: clients that leave or dawdle, a trainer that takes the model, a stop."""

from __future__ import annotations

import copy
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tracetune.types import Sampling

HELLO = [{"role": "user", "content": "w1 w2 w3"}]


def chat(client, **options):
    """One chat completion."""
    return client.chat.completions.create(**{"model": "policy", "messages": HELLO, "max_tokens": 12, **options})


class Gate:
    """Holds the model's forward passes while it is closed; tells when one has come."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.passes = 0

    def close(self) -> None:
        self.open.clear()
        self.reached.clear()

    def __call__(self) -> None:
        self.passes += 1
        self.reached.set()
        assert self.open.wait(30)


@pytest.fixture
def gate(model, monkeypatch):
    """A gate before each forward pass, open at first: an endpoint makes some when it starts."""
    gate = Gate()
    forward = type(model).forward

    def held(self, *args, **inputs):
        gate()
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", held)
    yield gate
    gate.open.set()


@pytest.fixture
def endless(model, tokenizer, monkeypatch):
    """Completions go on until they are long enough: no token ends them."""
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    tokenizer.eos_token = None
    yield
    tokenizer.eos_token = "<end>"


def request(endpoint, body):
    """A request for a completion, as it goes over the wire."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {endpoint.policy.api_key}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def wait_for_record(journal, number=1):
    """The journal's record of that number, once it is there."""
    with journal.written:
        assert journal.written.wait_for(lambda: len(journal.completions) >= number, timeout=30)
    return journal.completions[number - 1]


def test_a_stream_that_is_closed_early_frees_its_row(endless, serve, connect, journal):
    """The row of a client that left ends as cancelled with what it had, and the next one gets its place."""
    client = connect(serve(max_rows=1))
    with chat(client, max_tokens=250, stream=True) as stream:
        for chunk, _ in zip(stream, range(4), strict=False):
            assert chunk.choices[0].finish_reason is None
    record = wait_for_record(journal)
    assert record.finish_reason == "cancelled"
    assert 3 <= len(record.completion_token_ids) < 250
    assert chat(client, temperature=0).usage.completion_tokens == 12


def test_a_client_that_gives_up_waiting_frees_its_row(endless, serve, journal, gate):
    """A request that is not streamed is let go as well when its connection closes."""
    endpoint = serve(max_rows=1)
    gate.close()
    address = httpx.URL(endpoint.policy.base_url)
    with socket.create_connection((address.host, address.port)) as impatient:
        impatient.sendall(request(endpoint, b'{"model": "policy", "prompt": "w1", "max_tokens": 250}'))
        assert gate.reached.wait(30)
    gate.open.set()
    record = wait_for_record(journal)
    assert record.finish_reason == "cancelled"
    assert len(record.completion_token_ids) < 250
    assert endpoint.completions_served == 0


def test_a_slow_reader_holds_nobody_up(endless, serve, connect, journal):
    """A client that never reads is decoded to the end, beside others that are answered, and does not hinder a stop."""
    endpoint = serve()
    address = httpx.URL(endpoint.policy.base_url)
    body = b'{"model": "policy", "prompt": "w1", "max_tokens": 250, "n": 32, "logprobs": 5, "stream": true}'
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.connect((address.host, address.port))
        slow.sendall(request(endpoint, body))
        assert slow.recv(4) == b"HTTP"
        assert chat(connect(endpoint), temperature=0).usage.completion_tokens == 12
        wait_for_record(journal, 33)
        finished = sorted(len(record.completion_token_ids) for record in journal.completions)
        assert finished == [12] + [250] * 32
        endpoint.stop()


def test_a_burst_of_prompts_does_not_starve_those_being_decoded(endless, client, model, monkeypatch):
    """Between two tokens of an active row, no more than about a thousand prompt tokens are prefilled."""
    shapes = []
    forward = type(model).forward

    def noting(self, input_ids, **inputs):
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", noting)
    with chat(client, max_tokens=240, stream=True) as stream, ThreadPoolExecutor(24) as pool:
        next(stream)
        prompts = [[6 + index, *([7 + index] * 199)] for index in range(24)]
        list(pool.map(lambda prompt: client.completions.create(model="policy", prompt=prompt, max_tokens=1), prompts))
    between = [0]
    for rows, length in shapes[1:]:
        if length == 1:
            between.append(0)
        else:
            between[-1] += rows * length
    assert sum(between) == 24 * 200
    assert max(between) <= 1024


def test_two_endpoints_at_once_keep_to_themselves(serve, connect, journal):
    """Two endpoints of one process have their own addresses, keys, versions and queues."""
    first, second = serve(version="a@0"), serve(version="b@0")
    clients = [connect(first), connect(second)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: chat(clients[index % 2]), range(16)))
    assert sorted(record.policy_version for record in journal.completions) == ["a@0"] * 8 + ["b@0"] * 8
    assert (first.completions_served, second.completions_served) == (8, 8)
    with pytest.raises(openai.AuthenticationError):
        chat(connect(first, api_key=second.policy.api_key))


def test_exclusive_waits_for_active_rows_and_admits_none(serve, connect, journal, gate):
    """The trainer gets the model when the rows being decoded are done; later requests wait for it to be back."""
    endpoint = serve()
    gate.close()
    client = connect(endpoint)
    inside, leave = threading.Event(), threading.Event()

    def train():
        with endpoint.exclusive():
            passes = gate.passes
            inside.set()
            assert leave.wait(30)
            assert gate.passes == passes
            endpoint.publish("try@1")

    with ThreadPoolExecutor(3) as pool:
        active = pool.submit(chat, client)
        assert gate.reached.wait(30)
        training = pool.submit(train)
        assert not inside.wait(0.05)
        gate.open.set()
        assert active.result(30).choices[0].finish_reason in ("length", "stop")
        assert inside.wait(30)
        waiting = pool.submit(chat, client)
        assert not waiting.done()
        leave.set()
        training.result(30)
        waiting.result(30)
    assert [record.policy_version for record in journal.completions] == ["try@0", "try@1"]
    assert endpoint.policy.version == "try@1"


def test_weights_that_change_in_exclusive_are_those_of_the_next_tokens(model, client, endpoint, journal):
    """Nothing computed with the old weights, prefilled prompts included, outlives a change."""
    before = chat(client, temperature=0).choices[0].message.content
    weights = model.lm_head.weight
    kept = weights.detach().clone()
    try:
        with endpoint.exclusive(), torch.no_grad():
            weights.copy_(kept.roll(1, dims=0))
        after = chat(client, temperature=0).choices[0].message.content
        record = journal.completions[-1]
        ids = torch.tensor([[*record.prompt_token_ids, *record.completion_token_ids]])
        with torch.no_grad():
            greedy = model(ids).logits[0, len(record.prompt_token_ids) - 1 : -1].argmax(-1)
        assert greedy.tolist() == list(record.completion_token_ids)
    finally:
        with torch.no_grad():
            weights.copy_(kept)
    assert before != after


def test_the_trainer_finds_its_modules_in_the_mode_that_it_left_them(serve, connect, tokenizer, model):
    """Decoding is in eval mode; inside `exclusive` and after `stop` each module is as its owner had it."""
    model.train()
    model.model.layers[0].eval()
    owned = [module.training for module in model.modules()]
    endpoint = serve()
    try:
        chat(connect(endpoint))
        assert not any(module.training for module in model.modules())
        with endpoint.exclusive():
            assert [module.training for module in model.modules()] == owned
        chat(connect(endpoint))
        assert not any(module.training for module in model.modules())
        endpoint.stop()
        assert [module.training for module in model.modules()] == owned
        with endpoint.exclusive():
            model.train()
        assert all(module.training for module in model.modules())
    finally:
        model.eval()


def test_a_model_with_an_adapter_is_served_as_it_is(serve, connect, journal, tokenizer, model):
    """An endpoint of a peft model decodes with the adapter on, and the trainer can switch it off for a reference."""
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    )
    endpoint = serve(model=adapted)
    chat(connect(endpoint), temperature=0)
    (record,) = journal.completions
    ids = torch.tensor([[*record.prompt_token_ids, *record.completion_token_ids]])
    with endpoint.exclusive(), torch.no_grad():
        logits_TV = adapted(ids).logits[0, len(record.prompt_token_ids) - 1 : -1]
        with adapted.disable_adapter():
            reference_TV = adapted(ids).logits[0, len(record.prompt_token_ids) - 1 : -1]
    assert logits_TV.argmax(-1).tolist() == list(record.completion_token_ids)
    torch.testing.assert_close(
        torch.tensor(record.completion_logprobs), logits_TV.log_softmax(-1).max(-1).values, atol=1e-5, rtol=1e-5
    )
    assert not torch.allclose(logits_TV, reference_TV)


def test_a_gradient_can_be_taken_through_parameters_that_have_decoded(client, endpoint, model):
    """Decoding leaves no inference tensors in the shared model: training steps go on as ever."""
    chat(client)
    with endpoint.exclusive():
        model(torch.tensor([[6, 7, 8]]), labels=torch.tensor([[6, 7, 8]])).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.zero_grad()
    assert chat(client).usage.completion_tokens > 0


def test_sampling_overrides_what_programs_ask_while_it_is_set(endpoint, client, journal):
    """Training samples from the policy's own distribution, anew each time; validation as the program wants it."""
    wishes = {"temperature": 0, "seed": 1, "top_p": 0.5, "extra_body": {"top_k": 1}, "stop": "w63"}
    endpoint.sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=5)
    texts = {chat(client, **wishes).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1
    endpoint.sampling = None
    chat(client, **wishes)
    overridden = Sampling(temperature=1.0, top_p=1.0, max_tokens=5, stop=("w63",))
    asked = Sampling(temperature=0.0, top_p=0.5, top_k=1, max_tokens=12, seed=1, stop=("w63",))
    assert [record.sampling for record in journal.completions] == [overridden] * 4 + [asked]


def test_stopping_records_what_was_begun_and_refuses_the_rest(endless, serve, connect, journal):
    """A stop ends active rows as cancelled, tells their clients, closes the address and may be repeated."""
    endpoint = serve()
    client = connect(endpoint)
    stream = chat(client, max_tokens=250, stream=True)
    next(stream)
    endpoint.stop()
    with pytest.raises(openai.APIError, match="has been stopped"):
        list(stream)
    (record,) = journal.completions
    assert record.finish_reason == "cancelled"
    assert len(record.completion_token_ids) >= 1
    with pytest.raises(openai.APIConnectionError):
        chat(client)
    endpoint.stop()


def test_a_journal_that_fails_is_heard_and_the_endpoint_goes_on(client, journal, monkeypatch):
    """A completion that could not be recorded is not passed off as answered."""

    def full(completion):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(journal, "completion", full)
        with pytest.raises(openai.InternalServerError, match="No space left on device"):
            chat(client)
    assert chat(client).usage.completion_tokens > 0


def test_a_model_that_fails_is_heard_and_the_endpoint_goes_on(client, model, journal, monkeypatch):
    """When a forward pass raises, the rows of its batch get 500 with the reason, and later ones are served."""
    forward = type(model).forward
    passes = iter(range(1000))

    def failing(self, *args, **inputs):
        if next(passes) == 3:
            raise MemoryError("out of memory")
        return forward(self, *args, **inputs)

    monkeypatch.setattr(type(model), "forward", failing)
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        chat(client, temperature=0)
    (record,) = journal.completions
    assert (record.finish_reason, len(record.completion_token_ids)) == ("cancelled", 3)
    assert chat(client, temperature=0).usage.completion_tokens == 12


def test_exclusive_work_is_done_where_decoding_is(client, endpoint):
    """Work that has the model to itself runs in the decode thread, with gradients on, and gives its result."""

    def work() -> tuple[str, bool]:
        return threading.current_thread().name, torch.is_grad_enabled()

    assert endpoint.exclusively(work) == ("tracetune-decoder", True)
    reply = client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "w3"}], max_tokens=2)
    assert reply.usage.completion_tokens > 0


def test_exclusive_work_that_fails_fails_where_it_was_asked_for(client, endpoint):
    """An exception reaches the caller, and the endpoint goes on answering."""
    with pytest.raises(ZeroDivisionError):
        endpoint.exclusively(lambda: 1 / 0)
    reply = client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "w3"}], max_tokens=2)
    assert reply.usage.completion_tokens > 0


def test_the_first_passes_are_made_before_anybody_asks(model, serve, connect, journal, monkeypatch):
    """A started endpoint has prefilled and decoded once, records nothing of it, and keeps nothing of it."""
    passes = []
    forward = type(model).forward

    def counting(self, input_ids, **inputs):
        passes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", counting)
    client = connect(serve())
    assert passes == [(1, 2), (1, 1)]
    client.completions.create(model="policy", prompt=[0, 0], max_tokens=1)
    assert passes[2:] == [(1, 2)]
    assert [len(record.completion_token_ids) for record in journal.completions] == [1]
