"""What the litellm adapter records: the real package against a real server, alone and with OpenAI's own adapter."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litellm
import pytest
from framework_trees import call, module, program, trees_of
from litellm import acompletion, completion  # as programs do, before anything is switched on
from litellm.chat_completions import dispatch
from litellm.exceptions import MidStreamFallbackError

import tracetune
from tracetune import adapters, tracer
from tracetune.errors import RolloutClosed
from tracetune.testing import span_tree
from tracetune.tracer import names

PROMPT: list[Any] = [{"role": "user", "content": "who?"}]


@pytest.fixture
def arguments(model_server: Any) -> dict[str, Any]:
    """A request to the server."""
    return {
        "model": "openai/tiny",
        "messages": PROMPT,
        "api_base": model_server.url,
        "api_key": "key",
        "num_retries": 0,
        "max_retries": 0,
    }


async def plain(arguments: dict[str, Any]) -> str:
    """A completion."""
    return str(completion(**arguments, temperature=0.5, stop=["x"], n=2).choices[1].message.content)


async def later(arguments: dict[str, Any]) -> str:
    """An async one."""
    return str((await acompletion(**arguments, temperature=0.5, stop=["x"], n=2)).choices[1].message.content)


async def streamed(arguments: dict[str, Any]) -> str:
    """A stream, read to its end."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in completion(**arguments, stream=True))


async def streamed_later(arguments: dict[str, Any]) -> str:
    """An async one."""
    chunks = await acompletion(**arguments, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])


async def left(arguments: dict[str, Any]) -> str:
    """A stream that is closed after its first text."""
    with completion(**arguments, stream=True) as stream:
        return str(next(chunk.choices[0].delta.content for chunk in stream))


async def left_later(arguments: dict[str, Any]) -> str:
    """An async one."""
    stream = await acompletion(**arguments, stream=True)
    text = str((await anext(stream)).choices[0].delta.content)
    await stream.aclose()
    return text


async def routed(arguments: dict[str, Any]) -> str:
    """By the router, which has a name of its own for the model."""
    model = {"model_name": "mine", "litellm_params": {**arguments}}
    model["litellm_params"].pop("messages")
    router = litellm.Router(model_list=[model], num_retries=0)
    first = router.completion(model="mine", messages=PROMPT).choices[0].message.content
    assert (await router.acompletion(model="mine", messages=PROMPT)).choices[0].message.content == first
    return str(first)


TABLE = [
    (plain, "answer 1", [["answer 0", "answer 1"]]),
    (later, "answer 1", [["answer 0", "answer 1"]]),
    (streamed, "answer", [["answer"]]),
    (streamed_later, "answer", [["answer"]]),
    (left, "an", [["an"]]),
    (left_later, "an", [["an"]]),
    (routed, "answer 0", [["answer 0"], ["answer 0"]]),
]


@pytest.mark.parametrize("instruments", [["litellm"], ["litellm", "openai"]], ids=["alone", "with openai"])
@pytest.mark.parametrize(("body", "given", "texts"), TABLE)
async def test_a_completion(
    body: Callable[[Any], Any],
    given: str,
    texts: list[list[str]],
    instruments: list[str],
    arguments: dict[str, Any],
    model_server: Any,
    store: Path,
    spool: Path,
) -> None:
    """Each request is one call with what came of it, its id travels with it, and OpenAI's client counts it no twice."""

    @tracer.module
    async def ask() -> str:
        return str(await body(arguments))

    @tracer.program
    async def find() -> str:
        return await ask()

    with tracetune.record(store, instrument=instruments), tracer.rollout() as rollout:
        assert await find() == given
        seen = [(one.turn, one.completion) for one in rollout.calls]
    assert seen == [(turn, text) for turn, choices in enumerate(texts) for text in choices]
    assert trees_of(spool) == [program("find", module("ask", *(call(turn) for turn in range(len(texts)))))]
    rows = tracetune.Store(store).sql("SELECT * FROM calls ORDER BY turn, choice").rows()
    assert [(row["turn"], row["choice"], row["completion"]) for row in rows] == [
        (turn, choice, text) for turn, choices in enumerate(texts) for choice, text in enumerate(choices)
    ]
    assert [row["call_id"] for row in rows if row["choice"] == 0] == model_server.call_ids
    assert set(model_server.modules) == {"ask"}
    assert {row["response_id"] for row in rows} == {f"chatcmpl-{turn + 1}" for turn in range(len(texts))}


def test_what_is_said_of_a_call(arguments: dict[str, Any], store: Path, spool: Path) -> None:
    """The span has the prompt, the sampling, the usage, the finish reason and the tool calls."""
    tools = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
    with tracetune.record(store, instrument=["litellm"]):
        completion(**arguments, max_completion_tokens=9, seed=1, tools=tools)
    ((attributes,),) = [[tree["attributes"] for tree in span_tree(spool)]]
    part = {"type": "tool_call", "id": "t1", "name": "search", "arguments": '{"query": "ann"}'}
    said = json.loads(attributes.pop(names.OUTPUT_MESSAGES))
    assert [(message["role"], message["parts"], message["finish_reason"]) for message in said] == [
        ("assistant", [part], attributes.pop(names.FINISH_REASONS)[0])
    ]
    assert attributes == {
        names.RUN: "default",
        names.KIND: "lm",
        names.CALL_KIND: "call",
        names.TURN: 0,
        names.OPERATION: "chat",
        names.PROVIDER: "litellm",
        names.REQUEST_MODEL: "openai/tiny",
        names.MAX_TOKENS: 9,
        names.SEED: 1,
        names.INPUT_MESSAGES: '[{"role":"user","parts":[{"type":"text","content":"who?"}]}]',
        names.RESPONSE_ID: "chatcmpl-1",
        names.RESPONSE_MODEL: "tiny-2026",
        names.INPUT_TOKENS: 7,
        names.OUTPUT_TOKENS: 3,
    }


def test_a_refusal_and_a_broken_stream(arguments: dict[str, Any], store: Path, spool: Path) -> None:
    """Litellm's exceptions reach the program, and the spans say which they were and what came before."""
    with tracetune.record(store, instrument=["litellm"]):
        with pytest.raises(litellm.BadRequestError):
            completion(**{**arguments, "model": "openai/broken"})
        with pytest.raises(MidStreamFallbackError):
            list(completion(**{**arguments, "model": "openai/broken-stream"}, stream=True))
    refused, broken = (tree["attributes"] for tree in span_tree(spool))
    assert (refused[names.STATUS], refused[names.ERROR_TYPE]) == ("error", "litellm.exceptions.BadRequestError")
    assert broken[names.STATUS] == "error"
    assert json.loads(broken[names.OUTPUT_MESSAGES])[0]["parts"] == [{"type": "text", "content": "an"}]


def test_litellm_is_as_it_was(arguments: dict[str, Any], model_server: Any, store: Path) -> None:
    """With nothing recording requests go out as ever; undone, all is litellm's own; from a closed rollout none goes."""
    names_of = ("__next__", "__anext__", "close", "aclose")
    originals = (dispatch._DISPATCH, *(getattr(litellm.CustomStreamWrapper, name) for name in names_of))
    adapters.instrument("litellm")
    completion(**arguments)
    adapters.uninstrument("litellm")
    assert (dispatch._DISPATCH, *(getattr(litellm.CustomStreamWrapper, name) for name in names_of)) == originals
    assert model_server.call_ids == [None]
    with tracetune.record(store, instrument=["litellm"]), tracer.rollout(id="r1") as rollout:
        rollout.close("timeout")
        with pytest.raises(RolloutClosed):
            completion(**arguments)
    assert len(model_server.requests) == 1
