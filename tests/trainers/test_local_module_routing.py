"""A policy of an adapter for each module, asked over HTTP: each module is answered by its own, in one batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import openai
import pytest
import torch
from tiny_llama import EOS, own_logprobs, tiny_batch, tiny_model

from tracetune.testing import ScriptedEnvironment
from tracetune.types import GroupBatch

PROMPT = "w1 w2 w3"


def batch_of(*modules: str) -> GroupBatch:
    """Groups that teach each module something else."""
    batch = tiny_batch(tiny_model(), sizes=[3] * len(modules), shift=0.3)
    return GroupBatch(
        [
            replace(group, members=[replace(one, module=module) for one in group.members])
            for module, group in zip(modules, batch, strict=True)
        ]
    )


def alone(trainer, module: str, prompt: list[int]) -> list[int]:
    """Six greedy tokens of the model with one module's adapter, or with none where it has none."""
    adapter = trainer._adapter_of(module)
    if adapter is not None:
        trainer._adapters.use(adapter)
    ids = list(prompt)
    with torch.no_grad(), trainer._adapters.disabled() if adapter is None else nullcontext():
        while len(ids) < len(prompt) + 6 and ids[-1] != EOS:
            ids.append(int(trainer.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture
def opened(make_trainer, tmp_path):
    """A trainer of an adapter for each module, its endpoint open, and its environment."""
    trainer = make_trainer(adapter_per_module=True, learning_rate=0.05)
    env = ScriptedEnvironment(tmp_path, words=("w1", "w2"))
    with trainer:
        trainer.open(env)
        yield trainer, env


def ask(client: openai.OpenAI, module: str | None):
    """One greedy answer."""
    return client.completions.create(
        model="policy",
        prompt=PROMPT,
        max_tokens=6,
        temperature=0.0,
        extra_headers={} if module is None else {"x-tracetune-module": module},
    )


def test_a_mixed_batch_gives_each_module_its_own_adapters_text(opened):
    """Before any step all modules are the bare model; after steps each has its own text, new modules the bare one."""
    trainer, env = opened
    prompt = trainer.tokenizer(PROMPT)["input_ids"]
    answers = []
    modules = ["a", "b", "new"] * 3
    with (
        openai.OpenAI(base_url=trainer.policy.base_url, api_key=trainer.policy.api_key, max_retries=0) as client,
        ThreadPoolExecutor(len(modules)) as pool,
    ):
        for taught in ((), ("a", "b"), ("b", "b")):
            trainer._endpoint.exclusively(lambda taught=taught: [trainer.step(batch_of(*taught)) for _ in range(3)])
            env.recorded.completions.clear()
            responses = list(pool.map(lambda module: ask(client, module), modules))
            records = {record.response_id: record for record in env.recorded.completions}
            found = [list(records[response.id].completion_token_ids) for response in responses]
            expected = trainer._endpoint.exclusively(lambda: [alone(trainer, module, prompt) for module in modules])
            assert found == expected
            answers.append(dict(zip(modules, found, strict=True)))
    assert answers[0]["a"] == answers[0]["b"] == answers[0]["new"]
    assert len({tuple(answers[1][module]) for module in ("a", "b", "new")}) == 3
    assert answers[2]["a"] == answers[1]["a"]
    assert answers[2]["b"] != answers[1]["b"]
    assert answers[2]["new"] == answers[0]["new"]


def test_what_is_recorded_is_what_the_modules_adapter_gives(opened):
    """Log-probabilities of a trained module's completion are those that its adapter reads there: a ratio of 1."""
    trainer, env = opened
    trainer._endpoint.exclusively(lambda: trainer.step(batch_of("a", "b")))
    with openai.OpenAI(base_url=trainer.policy.base_url, api_key=trainer.policy.api_key, max_retries=0) as client:
        ask(client, "a")
    (record,) = env.recorded.completions

    def read() -> list[float]:
        trainer._adapters.use(trainer._adapter_of("a"))
        return own_logprobs(trainer.model, list(record.prompt_token_ids), list(record.completion_token_ids))

    assert list(record.completion_logprobs) == pytest.approx(trainer._endpoint.exclusively(read), rel=1e-5, abs=1e-4)


def test_a_request_without_a_module_is_refused_with_what_is_missing(opened):
    """It is no server's error, and its message names the header."""
    trainer, _ = opened
    with (
        openai.OpenAI(base_url=trainer.policy.base_url, api_key=trainer.policy.api_key, max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        ask(client, None)
    assert caught.value.body == {
        "message": "the policy has an adapter for each module and the request does not say which module it is of; "
        "make it inside a decorated module, or send the header x-tracetune-module",
        "type": "invalid_request_error",
        "param": None,
        "code": "module_missing",
    }
