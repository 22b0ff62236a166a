"""A program of pydantic-ai's agents, told by its own spans: beside us in one process, and from elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from looped_program import TRAIN, low_words, trainer
from opentelemetry import trace
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from pydantic_ai import Agent
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from typer.testing import CliRunner

import tracetune
from tracetune.cli import app

USER: Any = {"role": "user", "content": "who?"}

# What the two agents are asked and answer, in order: a tool's call and what follows it, twice, and a text.
EXPECTED = [
    ("finder", 0, 0, ["system", "user"], None),
    ("finder", 0, 1, ["system", "user", "assistant", "tool"], "ann"),
    ("finder", 1, 0, ["system", "user"], None),
    ("finder", 1, 1, ["system", "user", "assistant", "tool"], "bob"),
    ("writer", 0, 0, ["system", "user"], "it is bob"),
]


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[TracerProvider]:
    """The application's tracer provider, where pydantic-ai's spans end."""
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    Agent.instrument_all(InstrumentationSettings(tracer_provider=provider))
    yield provider
    Agent.instrument_all(False)
    provider.shutdown()


def model_at(url: str, key: str = "key", name: str = "tiny") -> OpenAIChatModel:
    """pydantic-ai's client of a server."""
    return OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key=key))


def find(question: str, server: Any) -> str:
    """Ask one agent twice, and another once."""
    server.says += ["ann", "bob", "it is bob"]
    model = model_at(server.url)
    finder, writer = Agent(model, name="finder", instructions="Find."), Agent(model, name="writer", system_prompt="W.")

    @finder.tool_plain
    def search(query: str) -> str:
        """Search for something."""
        return query.upper()

    once = finder.run_sync(question).output
    return writer.run_sync(finder.run_sync(once).output).output


def told(store: Path) -> list[tuple[Any, ...]]:
    """Module, invocation, turn, prompt and answer of each call."""
    rows = tracetune.Store(store).sql("SELECT * FROM calls ORDER BY started_at").rows()
    return [
        (row["module"], row["invocation"], row["turn"], json.loads(row["messages"]), row["completion"]) for row in rows
    ]


def without_prompts(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The same, with the roles of the prompt's messages alone."""
    return [(*place, [message["role"] for message in prompt], text) for *place, prompt, text in rows]


@pytest.mark.parametrize("instruments", [["openai"], []], ids=["with openai", "alone"])
def test_agents_in_a_program_are_its_modules(
    instruments: list[str], model_server: Any, store: Path, provider: TracerProvider
) -> None:
    """Each request is one call, of its agent's run; OpenAI's adapter, where it is on, tells the server so."""
    program = tracetune.program(find)
    with tracetune.record(store, instrument=instruments):
        assert program("who?", model_server) == "it is bob"
    assert without_prompts(told(store)) == EXPECTED
    sent = [body["messages"] for _, body in model_server.requests]
    assert [loosely(row[3]) for row in told(store)] == [loosely(messages) for messages in sent]
    modules = [row[0] for row in EXPECTED] if instruments else [None] * len(EXPECTED)
    assert model_server.modules == modules
    rows = tracetune.Store(store).sql("SELECT * FROM calls ORDER BY started_at").rows()
    assert [row["response_id"] for row in rows] == [f"chatcmpl-{number}" for number in range(1, 6)]
    assert {(row["unordered"], row["cached"], row["late"]) for row in rows} == {(False, False, False)}


def test_their_spans_alone_tell_the_same(model_server: Any, tmp_path: Path, provider: TracerProvider) -> None:
    """Imported from a file, they give the prompts and answers that were sent, by agent and run."""
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(str(tmp_path / "theirs.jsonl"))))
    spans = provider.get_tracer("app")
    with spans.start_as_current_span("find", attributes={"gen_ai.operation.name": "invoke_workflow"}):
        find("who?", model_server)
    sent = [body["messages"] for _, body in model_server.requests]
    theirs = tmp_path / "theirs.duckdb"
    done = CliRunner().invoke(app, ["import", str(theirs), str(tmp_path / "theirs.jsonl")])
    assert done.exit_code == 0, done.output
    rows = told(theirs)
    assert without_prompts(rows) == EXPECTED
    assert [loosely(row[3]) for row in rows] == [loosely(messages) for messages in sent]


def loosely(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a tool's arguments as values: pydantic-ai's spans do not keep how they were spelt."""
    spelt = json.loads(json.dumps(messages))
    for message in spelt:
        for call in message.get("tool_calls") or ():
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return spelt  # type: ignore[no-any-return]  # as it came


def test_an_agent_outside_any_program_is_one(model_server: Any, store: Path, provider: TracerProvider) -> None:
    """Its run is a rollout, and its calls are its own."""
    with tracetune.record(store, instrument=["openai"]):
        Agent(model_at(model_server.url), name="finder").run_sync("who?")
    rows = tracetune.Store(store)
    assert [row[:3] for row in told(store)] == [("finder", 0, 0)]
    assert rows.sql("SELECT program, n_calls, status FROM rollouts").rows() == [
        {"program": "finder", "n_calls": 1, "status": "ok"}
    ]


def test_agents_at_once_and_agents_in_tools(model_server: Any, store: Path, provider: TracerProvider) -> None:
    """Runs of one agent that overlap have no order; an agent that a tool asks is a module, and so is the tool."""
    model = model_at(model_server.url)
    finder, asker, helper = (Agent(model, name=name) for name in ("finder", "asker", "helper"))

    @tracetune.module
    async def look(query: str) -> str:
        return str((await model.client.chat.completions.create(model="tiny", messages=[USER])).choices[0].message)

    @asker.tool_plain
    async def search(query: str) -> str:
        """Search for something."""
        await helper.run(query)
        await model.client.chat.completions.create(model="tiny", messages=[USER])
        return await look(query)

    @tracetune.program
    async def both() -> None:
        await asyncio.gather(finder.run("a"), finder.run("b"))
        await asker.run("c")

    with tracetune.record(store, instrument=["openai"]):
        asyncio.run(both())
    query = "SELECT module, invocation, turn, unordered FROM calls ORDER BY ALL"
    assert [tuple(row.values()) for row in tracetune.Store(store).sql(query).rows()] == [
        ("asker", 0, 0, False),
        ("asker", 0, 1, False),
        ("finder", 0, 0, True),
        ("finder", 1, 0, True),
        ("helper", 0, 0, False),
        ("look", 0, 0, False),
        ("search", 0, 0, False),
    ]
    nodes = "SELECT kind, module FROM spans WHERE kind <> 'lm' ORDER BY started_at"
    assert [tuple(row.values()) for row in tracetune.Store(store).sql(nodes).rows()] == [
        ("program", "both"),
        *[("module", "finder")] * 2,
        ("module", "asker"),
        ("tool", "search"),
        ("module", "helper"),
        ("module", "look"),
    ]


def test_what_a_policy_answers_them_is_exact(tmp_path: Path, provider: TracerProvider) -> None:
    """In a step of training every completion of the endpoint is one call of an agent, with its tokens."""

    @tracetune.program
    async def walk(word: str) -> str:
        policy = tracetune.policy()
        model = model_at(policy.base_url, policy.api_key, policy.model)
        agents = [Agent(model, name=name, model_settings={"max_tokens": 3}) for name in ("first", "second")]
        try:
            for agent in agents:
                word = (await agent.run(word)).output
        except UnexpectedModelBehavior:  # it says nothing at all, twice
            return ""
        return word

    result = tracetune.optimize(
        walk, TRAIN, low_words, trainer(), store=tmp_path / "a.duckdb", steps=1, examples_per_step=2, rollouts=4,
        progress=False,
    )  # fmt: skip
    store = tracetune.Store(result.store)
    rows = store.sql("SELECT module, invocation, exact, on_policy, unordered FROM calls").rows()
    assert {tuple(row.values()) for row in rows} == {(name, 0, True, True, False) for name in ("first", "second")}
    assert store.sql("SELECT count(*) AS completions FROM completions").rows() == [{"completions": len(rows)}]
