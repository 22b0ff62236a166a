"""What the OpenAI adapter records, against a real client and a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

import tracetune
from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import names

PROMPT: list[Any] = [{"role": "user", "content": "who?"}]
ARGUMENTS: dict[str, Any] = {"model": "tiny", "messages": PROMPT}
INPUT = '[{"role":"user","parts":[{"type":"text","content":"who?"}]}]'
TOOLS: list[Any] = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
SEARCH = {"id": "t1", "type": "function", "function": {"name": "search", "arguments": '{"query": "ann"}'}}


def lm_spans(spool: Path) -> list[dict[str, Any]]:
    """The attributes of all LM spans, without those that the scope gives."""
    scope = ("tracetune.run", "tracetune.rollout_id", "tracetune.example_id", "tracetune.key", "tracetune.execution")
    found: list[dict[str, Any]] = []

    def walk(nodes: list[dict[str, Any]]) -> None:
        for node in nodes:
            if node["attributes"][names.KIND] == "lm":
                found.append({name: value for name, value in node["attributes"].items() if name not in scope})
            walk(node["children"])

    walk(span_tree(spool))
    return found


def expected(texts: list[str], finish_reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    """The attributes of a call in a module `ask`."""
    messages = [
        {"role": "assistant", "parts": [{"type": "text", "content": text}]}
        | ({"finish_reason": finish_reason} if finish_reason else {})
        for text in texts
    ]
    return {
        names.KIND: "lm",
        names.CALL_KIND: "call",
        names.MODULE: "ask",
        names.INVOCATION: 0,
        names.TURN: 0,
        names.OPERATION: "chat",
        names.PROVIDER: "openai",
        names.REQUEST_MODEL: "tiny",
        names.INPUT_MESSAGES: INPUT,
        names.OUTPUT_MESSAGES: json.dumps(messages, separators=(",", ":")),
        names.RESPONSE_ID: "chatcmpl-1",
        names.RESPONSE_MODEL: "tiny-2026",
        **({names.FINISH_REASONS: [finish_reason] * len(texts)} if finish_reason else {}),
        **more,
    }


USAGE = {names.INPUT_TOKENS: 7, names.OUTPUT_TOKENS: 3}


def test_a_completion(client: openai.OpenAI, model_server: Any, store: Path, spool: Path) -> None:
    """A call is one LM span with what was asked and what came back, and its request names it."""

    @tracer.module
    def ask() -> str | None:
        reply = client.chat.completions.create(
            **ARGUMENTS,
            temperature=0.5,
            top_p=0.9,
            max_completion_tokens=9,
            seed=1,
            stop="\n",
            n=2,
            extra_headers={"x-mine": "kept"},
            extra_body={"top_k": 4},
        )
        return reply.choices[1].message.content

    @tracer.program
    def find() -> str | None:
        return ask()

    with tracetune.record(store), tracer.rollout(example_id="q1") as rollout:
        assert find() == "answer 1"
    asked = {
        names.TEMPERATURE: 0.5,
        names.TOP_P: 0.9,
        names.MAX_TOKENS: 9,
        names.SEED: 1,
        names.STOP: ["\n"],
        names.CHOICE_COUNT: 2,
        names.TOP_K: 4,
    }
    assert lm_spans(spool) == [expected(["answer 0", "answer 1"], **asked, **USAGE)]
    (call_id,) = model_server.call_ids
    assert model_server.modules == ["ask"]
    assert model_server.requests[0][0]["x-mine"] == "kept"
    assert [(call.call_id, call.choice, call.module, call.completion, call.messages) for call in rollout.calls] == [
        (call_id, 0, "ask", "answer 0", tuple(PROMPT)),
        (f"{call_id}.1", 1, "ask", "answer 1", tuple(PROMPT)),
    ]


async def test_an_async_completion(
    async_client: openai.AsyncOpenAI, model_server: Any, store: Path, spool: Path
) -> None:
    """The async client's calls are recorded as the sync client's are."""

    @tracer.module
    async def ask() -> str | None:
        return (await async_client.chat.completions.create(**ARGUMENTS)).choices[0].message.content

    with tracetune.record(store):
        assert await ask() == "answer 0"
    assert lm_spans(spool) == [expected(["answer 0"], **USAGE)]
    assert len(model_server.call_ids[0] or "") == 16


def read(stream: Any) -> str:
    """All the text of a stream."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def read_first(stream: Any) -> str:
    """A stream's first text; the rest is left unread."""
    with stream:
        return next(stream).choices[0].delta.content or ""


@pytest.mark.parametrize(
    ("consume", "options", "text", "attributes"),
    [
        (read, {}, "answer", expected(["answer"])),
        (read, {"stream_options": {"include_usage": True}}, "answer", expected(["answer"], **USAGE)),
        (read_first, {}, "an", expected(["an"], None)),
    ],
    ids=["whole", "with usage", "closed early"],
)
def test_a_stream(
    consume: Callable[[Any], str],
    options: dict[str, Any],
    text: str,
    attributes: dict[str, Any],
    client: openai.OpenAI,
    store: Path,
    spool: Path,
) -> None:
    """A stream's span lasts until the stream is done or closed, and holds what came until then."""

    @tracer.module
    def ask() -> str:
        stream = client.chat.completions.create(**ARGUMENTS, stream=True, **options)
        assert isinstance(stream, openai.Stream)
        return consume(stream)

    with tracetune.record(store):
        assert ask() == text
    assert lm_spans(spool) == [attributes]


async def test_async_streams(async_client: openai.AsyncOpenAI, store: Path, spool: Path) -> None:
    """Async streams are recorded whole, and as far as they were read when closed early."""

    @tracer.module
    async def ask(limit: int) -> str:
        texts = []
        async with await async_client.chat.completions.create(**ARGUMENTS, stream=True) as stream:
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content or "")
                if len(texts) == limit:
                    break
        return "".join(texts)

    with tracetune.record(store):
        assert (await ask(9), await ask(1)) == ("answer", "an")
    whole, early = lm_spans(spool)
    assert whole == expected(["answer"])
    assert early == expected(["an"], None, **{names.RESPONSE_ID: "chatcmpl-2"})


def test_the_streaming_helper(client: openai.OpenAI, store: Path, spool: Path) -> None:
    """The SDK's own `stream` helper, which closes the response behind the stream's back, ends its span too."""

    @tracer.module
    def ask() -> str:
        with client.chat.completions.stream(**ARGUMENTS) as stream:
            return next(event.type for event in stream)

    with tracetune.record(store):
        assert ask() == "chunk"
        assert lm_spans(spool) == [expected(["an"], None)]


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls(streamed: bool, client: openai.OpenAI, store: Path, spool: Path) -> None:
    """Tool calls are kept in the output message, streamed or not."""

    @tracer.module
    def ask() -> None:
        reply: Any = client.chat.completions.create(**ARGUMENTS, tools=TOOLS, stream=streamed)
        list(reply)

    with tracetune.record(store):
        ask()
    (attributes,) = lm_spans(spool)
    (message,) = json.loads(attributes[names.OUTPUT_MESSAGES])
    message.pop("finish_reason")
    part = {"type": "tool_call", "id": "t1", "name": "search", "arguments": '{"query": "ann"}'}
    assert message == {"role": "assistant", "parts": [part]}


def test_a_refused_request(client: openai.OpenAI, store: Path, spool: Path) -> None:
    """The SDK's exception reaches the program, and the span says which it was."""

    @tracer.module
    def ask() -> None:
        client.chat.completions.create(model="broken", messages=PROMPT)

    with tracetune.record(store), pytest.raises(openai.BadRequestError, match="no such luck"):
        ask()
    (attributes,) = lm_spans(spool)
    assert (attributes[names.STATUS], attributes[names.ERROR_TYPE]) == ("error", "openai.BadRequestError")
    assert attributes[names.INPUT_MESSAGES] == INPUT


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_stream_that_breaks(
    asynchronous: bool, client: openai.OpenAI, async_client: openai.AsyncOpenAI, store: Path, spool: Path
) -> None:
    """What came before the break is kept, with the exception that broke it."""
    arguments: dict[str, Any] = {"model": "broken-stream", "messages": PROMPT, "stream": True}
    with tracetune.record(store):
        if asynchronous:
            stream: Any = await async_client.chat.completions.create(**arguments)
            with pytest.raises(openai.APIError, match="lost the thread"):
                [chunk async for chunk in stream]
        else:
            with pytest.raises(openai.APIError, match="lost the thread"):
                list(client.chat.completions.create(**arguments))
    (attributes,) = lm_spans(spool)
    assert attributes[names.ERROR_TYPE] == "openai.APIError"
    assert json.loads(attributes[names.OUTPUT_MESSAGES]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "an"}]}
    ]


def test_raw_responses_pass_unharmed(client: openai.OpenAI, store: Path, spool: Path) -> None:
    """A raw response is what the SDK gives, parses as it would, and its call is recorded."""

    @tracer.module
    def ask() -> str | None:
        raw = client.chat.completions.with_raw_response.create(**ARGUMENTS)
        assert raw.headers["content-type"] == "application/json"
        return raw.parse().choices[0].message.content

    with tracetune.record(store):
        assert ask() == "answer 0"
    assert lm_spans(spool) == [expected(["answer 0"], **USAGE)]


def test_raw_streams_pass_unharmed(client: openai.OpenAI, store: Path, spool: Path) -> None:
    """A raw response to a streamed request can still be read as a stream, once."""

    @tracer.module
    def ask() -> str:
        return read(client.chat.completions.with_raw_response.create(**ARGUMENTS, stream=True).parse())

    with tracetune.record(store):
        assert ask() == "answer"
    assert lm_spans(spool) == [expected(["answer"])]


def test_responses_read_as_they_come_pass_unharmed(client: openai.OpenAI, model_server: Any, store: Path) -> None:
    """A response whose body the program reads itself is not read by the adapter."""
    with tracetune.record(store), client.chat.completions.with_streaming_response.create(**ARGUMENTS) as response:
        assert json.loads("".join(response.iter_text()))["choices"][0]["message"]["content"] == "answer 0"
    assert len(model_server.call_ids[0] or "") == 16


def test_parsed_completions(client: openai.OpenAI, model_server: Any, store: Path, spool: Path) -> None:
    """`parse`, which does not go by `create`, is recorded as well."""

    class Anything(BaseModel):
        pass

    @tracer.module
    def ask() -> None:
        with pytest.raises(ValueError, match="Invalid JSON"):
            client.chat.completions.parse(**ARGUMENTS, response_format=Anything)

    with tracetune.record(store):
        ask()
    (attributes,) = lm_spans(spool)
    assert attributes[names.STATUS] == "error"
    assert model_server.modules == ["ask"]


def test_odd_answers_pass_unharmed(client: openai.OpenAI, store: Path, spool: Path) -> None:
    """What a server sends against the rules reaches the program; that it can't be recorded is warned of once."""

    def ask() -> tuple[Any, str, Any]:
        create = client.chat.completions.create
        plain: Any = create(model="odd", messages=PROMPT)
        streamed = read(create(model="odd-stream", messages=PROMPT, stream=True))
        raw: Any = client.chat.completions.with_raw_response.create(model="odd", messages=PROMPT)
        return plain.choices, streamed, raw.parse().choices

    with tracetune.record(store), pytest.warns(TracetuneWarning, match="an LM call could not be recorded") as caught:
        assert ask() == (4, "answer", 4)
    assert len(caught) == 1
    assert [attributes[names.REQUEST_MODEL] for attributes in lm_spans(spool)] == ["odd", "odd-stream", "odd"]


def test_messages_of_the_sdk_and_iterators(client: openai.OpenAI, model_server: Any, store: Path, spool: Path) -> None:
    """A prompt may hold the SDK's own messages and be an iterator; it is sent and recorded all the same."""

    @tracer.module
    def ask() -> None:
        first = client.chat.completions.create(**ARGUMENTS, tools=TOOLS).choices[0].message
        answer = {"role": "tool", "tool_call_id": "t1", "content": "ann's friend is bob"}
        prompt: Any = iter([*PROMPT, first, answer])
        client.chat.completions.create(model="tiny", messages=prompt)

    with tracetune.record(store), tracer.rollout() as rollout:
        ask()
    conversation = [*PROMPT, {"role": "assistant", "content": None, "tool_calls": [SEARCH]}]
    conversation.append({"role": "tool", "tool_call_id": "t1", "content": "ann's friend is bob"})
    assert [dict(message) for message in rollout.calls[1].messages] == conversation
    assert model_server.requests[1][1]["messages"] == conversation
    assert [attributes[names.TURN] for attributes in lm_spans(spool)] == [0, 1]
