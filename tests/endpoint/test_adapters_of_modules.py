"""Modules with adapters of their own, decoded in one batch."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from copy import deepcopy

import openai
import peft
import pytest
import torch

from tracetune.trainers.endpoint.problems import Problem

PROMPT = [6 + index * 11 % 60 for index in range(40)]
MODULES = {"plan": "first", "act": "second", "judge": None}


@pytest.fixture(scope="module")
def adapted(model):
    """The model with two adapters that say different things; the second also stands in force by itself."""
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(deepcopy(model), settings, adapter_name="first")
    adapted.add_adapter("second", settings)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    adapted.set_adapter("second")
    return adapted


def ask(client, module, prompt, **options):
    """One greedy completion for a module."""
    return client.completions.create(
        model="policy",
        prompt=prompt,
        **{"max_tokens": 12, "temperature": 0, **options},
        extra_headers={} if module is None else {"x-tracetune-module": module},
    )


def alone(adapted, adapter, prompt, length):
    """Greedy tokens and log-probabilities of one adapter by itself, every pass from the beginning."""
    ids = list(prompt)
    logprobs = []
    if adapter is not None:
        adapted.set_adapter(adapter)
    try:
        with torch.no_grad(), adapted.disable_adapter() if adapter is None else nullcontext():
            while len(ids) < len(prompt) + length:
                logprobs_V = adapted(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                ids.append(int(logprobs_V.argmax()))
                logprobs.append(float(logprobs_V[ids[-1]]))
                if ids[-1] == 1:
                    break
    finally:
        adapted.set_adapter("second")
    return ids[len(prompt) :], logprobs


def test_a_mixed_batch_gives_each_module_what_its_adapter_gives_alone(serve, connect, journal, adapted):
    """Each module gets its adapter's greedy tokens and log-probabilities, and the base model its own."""
    client = connect(serve(model=adapted, adapter_of=MODULES.get))
    asked = [(module, PROMPT[: 40 - 3 * cut]) for module in [*MODULES, None] for cut in range(3)]
    with ThreadPoolExecutor(len(asked)) as pool:
        responses = list(pool.map(lambda each: ask(client, *each), asked))
    records = {record.response_id: record for record in journal.completions}
    found = {}
    for (module, prompt), response in zip(asked, responses, strict=True):
        record = records[response.id]
        assert (record.module, list(record.prompt_token_ids)) == (module, prompt)
        tokens, logprobs = alone(adapted, MODULES.get(module), prompt, 12)
        assert list(record.completion_token_ids) == tokens
        torch.testing.assert_close(
            torch.tensor(record.completion_logprobs), torch.tensor(logprobs), atol=1e-5, rtol=1e-5
        )
        found[module, len(prompt)] = tokens
    # The adapters differ, so a mix-up would have been seen.
    assert len({tuple(found[module, 40]) for module in MODULES}) == 3
    assert found[None, 40] == found["judge", 40]


def test_a_prompt_that_was_prefilled_for_one_adapter_is_not_taken_for_another(serve, connect, journal, adapted):
    """The same prompt, asked for later by another module, is computed anew for it."""
    client = connect(serve(model=adapted, adapter_of=MODULES.get))
    for module in ("plan", "act", "judge", "plan"):
        ask(client, module, PROMPT)
    assert [list(record.completion_token_ids) for record in journal.completions] == [
        alone(adapted, MODULES[module], PROMPT, 12)[0] for module in ("plan", "act", "judge", "plan")
    ]


def test_without_adapter_of_the_model_is_used_as_it_is(serve, connect, journal, adapted):
    """All modules get the adapter that is in force."""
    client = connect(serve(model=adapted))
    for module in ("plan", "act"):
        ask(client, module, PROMPT)
    expected = alone(adapted, "second", PROMPT, 12)[0]
    assert [list(record.completion_token_ids) for record in journal.completions] == [expected] * 2


def test_training_sees_the_model_without_the_endpoints_hooks(serve, adapted):
    """While its owner has the model, it is as it was handed over."""
    hooks = [len(module._forward_pre_hooks) for module in adapted.modules()]
    endpoint = serve(model=adapted, adapter_of=MODULES.get)
    assert [len(module._forward_pre_hooks) for module in adapted.modules()] != hooks
    with endpoint.exclusive():
        assert [len(module._forward_pre_hooks) for module in adapted.modules()] == hooks
    endpoint.stop()
    assert [len(module._forward_pre_hooks) for module in adapted.modules()] == hooks


def test_a_module_without_an_adapter_is_refused_in_the_words_of_adapter_of(serve, connect, adapted):
    """What `adapter_of` raises is what the client hears; a name that the model does not have is told."""

    def adapter_of(module):
        if module is None:
            raise Problem(404, "name a module", "x-tracetune-module", "unknown_module")
        return module

    client = connect(serve(model=adapted, adapter_of=adapter_of))
    with pytest.raises(openai.NotFoundError, match="name a module"):
        ask(client, None, PROMPT)
    with pytest.raises(openai.InternalServerError, match="'third', which the model does not have"):
        ask(client, "third", PROMPT)
    assert ask(client, "first", PROMPT).usage.completion_tokens >= 1


def test_a_request_that_waits_for_a_step_gets_the_adapter_that_the_step_makes(serve, connect, journal, adapted):
    """What is answered under a version is answered by the weights of that version."""
    adapters: dict[str | None, str] = {}
    endpoint = serve(model=adapted, adapter_of=adapters.get)
    client = connect(endpoint)
    with ThreadPoolExecutor(1) as pool, endpoint.exclusive():
        waiting = pool.submit(ask, client, "plan", PROMPT)
        while not endpoint._decoder._queue.waiting:  # nothing that can be asked tells
            time.sleep(0.01)
        adapters["plan"] = "first"
        endpoint.publish("try@1")
    response = waiting.result()
    (record,) = [record for record in journal.completions if record.response_id == response.id]
    expected = alone(adapted, "first", PROMPT, 12)[0]
    assert (record.policy_version, list(record.completion_token_ids)) == ("try@1", expected)
