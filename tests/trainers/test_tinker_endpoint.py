"""A policy at a Tinker service, asked by the real `openai` client: what is recorded, and what goes wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from tiny_llama import EOS, group, member, own_logprobs, tiny_tokenizer

from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.trainers.tinker.engine import TinkerEngine
from tracetune.types import Completion, GroupBatch, Plan, Sampling

HELLO = [{"role": "user", "content": "w1 w2"}]
PROMPT = (2, 6, 7, 3)


class Journal:
    """Keeps completions, and fails when it is told to."""

    def __init__(self) -> None:
        self.completions: list[Completion] = []
        self.is_full = False

    def completion(self, completion: Completion) -> None:
        if self.is_full:
            raise OSError("no space left on device")
        self.completions.append(completion)

    def policy(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.fixture
def journal() -> Journal:
    """Where the endpoint records."""
    return Journal()


@pytest.fixture
def trainer(make_tinker) -> Any:
    """A trainer whose few steps change much."""
    return make_tinker(learning_rate=0.05)


@pytest.fixture
def endpoint(trainer, journal) -> Iterator[Any]:
    """The trainer's policy, served."""
    env = SimpleNamespace(journal=journal, plan=Plan("run", steps=1, examples_per_step=1, rollouts=2))
    with trainer.endpoint(env, "run@0") as served:
        yield served


@pytest.fixture
def client(endpoint) -> Iterator[openai.OpenAI]:
    """A client of it that asks once and no more."""
    policy = endpoint.policy
    with openai.OpenAI(base_url=policy.base_url, api_key=policy.api_key, max_retries=0) as made:
        yield made


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    """One chat completion."""
    return client.chat.completions.create(**{"model": "policy", "messages": HELLO, "max_tokens": 5, **changes})


def test_what_is_sampled_is_recorded_token_by_token(client, journal, model, service):
    """Three choices are one request to the service, and each is recorded with the policy's own log-probabilities."""
    reply = ask(client, n=3, extra_headers={"x-tracetune-call": "c1", "x-tracetune-module": "hop"})
    assert service.samples_asked() == [3]
    records = sorted(journal.completions, key=lambda record: record.choice)
    decode = tiny_tokenizer().decode
    assert [
        (r.response_id, r.choice, r.prompt_token_ids, r.policy_version, r.call_id, r.module, r.text, r.finish_reason)
        for r in records
    ] == [(reply.id, c.index, PROMPT, "run@0", "c1", "hop", c.message.content, c.finish_reason) for c in reply.choices]
    for record in records:
        tokens = record.completion_token_ids
        assert record.text == decode(tokens, skip_special_tokens=True)
        assert record.completion_logprobs == pytest.approx(own_logprobs(model, PROMPT, tokens), abs=1e-5)
        assert record.sampling == Sampling(temperature=1.0, top_p=1.0, max_tokens=5)
    assert reply.usage.completion_tokens == sum(len(record.completion_token_ids) for record in records)


def test_a_stream_has_its_text_and_its_end(client, journal):
    """A streamed answer is the recorded one, usage included."""
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, seed=3))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    (record,) = journal.completions
    assert (text, chunks[-2].choices[0].finish_reason) == (record.text, record.finish_reason)
    assert chunks[-1].usage.completion_tokens == len(record.completion_token_ids)


def test_a_stop_string_is_cut_off_and_its_token_recorded(client, journal):
    """The text ends before the string; the token that completed it was sampled, so it is trained on."""
    whole = ask(client, temperature=0, max_tokens=6).choices[0]
    words = (whole.message.content or "").split()
    cut = ask(client, temperature=0, max_tokens=6, stop=[words[2]]).choices[0]
    assert ((cut.message.content or "").split(), cut.finish_reason) == (words[: words.index(words[2])], "stop")
    assert (
        journal.completions[1].completion_token_ids
        == journal.completions[0].completion_token_ids[: words.index(words[2]) + 1]
    )


def test_a_seed_repeats_and_its_choices_differ(client, service):
    """Seeded rows are asked for alone, each with its own seed."""
    first, second = (ask(client, seed=7, n=2, max_tokens=8) for _ in range(2))
    texts = [[choice.message.content for choice in reply.choices] for reply in (first, second)]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]
    assert sorted(body["sampling_params"]["seed"] for body in service.bodies("asample")) == [7, 7, 8, 8]


def test_sampling_goes_to_the_service_as_it_was_asked(client, service, journal):
    """Temperature, truncation and stop strings are the service's to apply."""
    ask(client, temperature=0.5, top_p=0.9, stop="w9", extra_body={"top_k": 4})
    (body,) = service.bodies("asample")
    params = {"max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop": ["w9"]}
    assert body["sampling_params"] == params
    assert not journal.completions[0].sampling.on_policy


def test_rows_that_wait_together_are_one_request_a_prompt(trainer, service, journal):
    """Choices of several requests with one prompt and one sampling are sampled in one request."""
    pieces: list[Piece] = []
    ended = threading.Event()

    def post(some: list[Piece]) -> None:
        pieces.extend(some)
        if len(pieces) == 6:
            ended.set()

    engine = TinkerEngine(trainer._run().sampler(), tiny_tokenizer(), version="v", journal=journal)
    rows = [row(str(index), prompt=(5, 6) if index < 4 else (7,)) for index in range(6)]
    engine.submit(rows[:2])
    engine.submit(rows[2:])
    engine.start(post)
    assert ended.wait(30)
    engine.stop()
    assert sorted(service.samples_asked()) == [2, 4]
    assert {piece.row.response_id for piece in pieces} == set("012345")
    assert engine.completions_served == len(journal.completions) == 6


def test_many_clients_at_once(client, journal, service):
    """Twenty clients with prompts of their own each get their own answer."""
    with ThreadPoolExecutor(20) as pool:
        asked = [[{"role": "user", "content": f"w{number}"}] for number in range(20)]
        replies = list(pool.map(lambda messages: ask(client, messages=messages), asked))
    texts = {record.response_id: (record.prompt_token_ids[1], record.text) for record in journal.completions}
    expected = [(5 + number, reply.choices[0].message.content) for number, reply in enumerate(replies)]
    assert [texts[reply.id] for reply in replies] == expected


def test_a_step_changes_what_is_sampled(trainer, endpoint, client, journal, service):
    """What is sampled after a step comes from the weights that it left, under the new version."""
    batch = GroupBatch([group(member(PROMPT, [9, 10, EOS], 1.0, logprobs=[-4.0, -4.0, -4.0]))])
    ask(client)
    endpoint.exclusively(lambda: trainer.step(batch))
    endpoint.publish("run@1")
    ask(client)
    before, after = journal.completions
    assert (before.policy_version, after.policy_version) == ("run@0", "run@1")
    present = own_logprobs(service.learner.adapter.model, PROMPT, after.completion_token_ids)
    assert after.completion_logprobs == pytest.approx(present, abs=1e-5)
    first = own_logprobs(service.base, PROMPT, after.completion_token_ids)
    assert after.completion_logprobs != pytest.approx(first, abs=0.01)


def test_exclusive_work_waits_for_what_is_under_way(trainer, endpoint, client, service):
    """What was sent comes back before the work begins; what is asked meanwhile waits until it is done."""
    free, events = threading.Event(), []
    service.busy_until(free)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(lambda: (ask(client), events.append("first answered")))
        until(lambda: service.samples_asked())
        work = pool.submit(endpoint.exclusively, lambda: events.append("work done"))
        until(lambda: trainer._engine._held)  # nothing that can be asked tells
        second = pool.submit(lambda: (ask(client), events.append("second answered")))
        free.set()
        for future in (first, work, second):
            future.result(timeout=30)
    assert sorted(events[:2]) == ["first answered", "work done"]
    assert events[2] == "second answered"


def test_a_client_that_leaves_is_given_up(endpoint, client, service, journal):
    """Nobody waits for its samples: nothing is recorded, and exclusive work goes on at once."""
    free = threading.Event()
    service.busy_until(free)
    with pytest.raises(openai.APITimeoutError):
        ask(client, timeout=0.5)
    done = threading.Event()
    threading.Thread(target=lambda: endpoint.exclusively(done.set), daemon=True).start()
    assert done.wait(30)
    free.set()
    assert (journal.completions, endpoint.completions_served) == ([], 0)
    assert ask(client).choices[0].finish_reason in ("stop", "length")


def test_what_the_service_cannot_do_is_refused_by_name(client):
    """Neither alternatives of each token nor answers of a form are asked of it; the client reads which it was."""
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, logprobs=True, top_logprobs=2)
    assert (caught.value.param, caught.value.code) == ("top_logprobs", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="response_format"):
        ask(client, response_format={"type": "json_object"})
    shown = ask(client, logprobs=True).choices[0].logprobs.content
    assert all(entry.logprob <= 0 for entry in shown)


def test_a_failure_of_the_service_reaches_the_client(client, service, journal):
    """It reads what went wrong and where; the next request is answered as usual."""
    service.break_next("asample", "fail")
    with pytest.raises(openai.InternalServerError, match="the tinker service could not sample: RequestFailedError"):
        ask(client)
    assert journal.completions == []
    ask(client)
    assert len(journal.completions) == 1


def test_a_busy_service_is_asked_again(client, service, journal):
    """Where the service says that it has too much to do, or hangs up, the sample is asked for once more."""
    service.break_next("asample", 429)
    service.break_next("asample", "lose")
    ask(client)
    assert len(service.samples_asked()) == 3
    assert len({body["seq_id"] for body in service.bodies("asample")}) == 1
    assert len(journal.completions) == 1


def test_what_cannot_be_recorded_is_not_handed_out(client, journal):
    """A completion that is in no journal can't be trained on, so its client hears of it."""
    journal.is_full = True
    with pytest.raises(openai.InternalServerError, match="could not be recorded: OSError: no space left"):
        ask(client)


def test_a_stop_refuses_what_is_not_finished(endpoint, client, service):
    """Whoever waits for a sample is told that the endpoint has stopped."""
    free = threading.Event()
    service.busy_until(free)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client)
        until(lambda: service.samples_asked())
        endpoint.stop()
        with pytest.raises(openai.InternalServerError, match="has been stopped"):
            waiting.result(timeout=30)
    free.set()


def test_a_stopped_engine_takes_no_rows(journal):
    """It was asked too late, and says so."""
    engine = TinkerEngine(None, tiny_tokenizer(), version="v", journal=journal)
    engine.start(lambda pieces: None)
    engine.stop()
    with pytest.raises(Problem, match="has been stopped"):
        engine.submit([row("late")])


def row(name: str, prompt: tuple[int, ...] = (5, 6)) -> Row:
    """A row of five tokens."""
    sampling = Sampling(temperature=1.0, top_p=1.0, max_tokens=5)
    return Row(name, 0, "policy", prompt, sampling, receive=lambda piece: None)


def until(is_so: Any) -> None:
    """Wait for something that is about to happen."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)
