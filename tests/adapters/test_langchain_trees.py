"""What the LangChain adapter records: whole trees, of real programs against a real server."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import langchain_programs as programs
import pytest
from framework_trees import call, module, program, reported_twice, tool, trees_of
from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.tracers import context
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

import tracetune
from tracetune import adapters, tracer
from tracetune.adapters.langchain import TracetuneCallback
from tracetune.errors import RolloutClosed

OVERLAPPING = pytest.mark.filterwarnings("ignore:executions of module:tracetune.errors.TracetuneWarning")

LOOP = [
    module("plan", call()),
    module("search", call(), invocation=0),
    module("search", call(), invocation=1),
    module("answer", call()),
]
TELL = module("tell", call())

TABLE = [
    (programs.invoke, LOOP),
    (programs.ainvoke, LOOP),
    (programs.stream, LOOP),
    (programs.stream_left, LOOP[:2]),
    (programs.astream_left, LOOP[:2]),
    (programs.tokens, [TELL]),
    (programs.tokens_left, [TELL]),
    (programs.atokens_left, [TELL, module("tell", call(), invocation=1)]),
    pytest.param(
        programs.batch,
        [module("tell", call(), unordered=True), module("tell", call(), invocation=1, unordered=True)],
        marks=OVERLAPPING,
    ),
    (
        programs.branches,
        [module("think", module("str"), module("think", call(), key="left"), module("judge", call(), key="right"))],
    ),
    (programs.assigned, [module("find", call(), key="said")]),
    (
        programs.retried_chain,
        [module("tell", call(0), module("parse", status="error"), call(1), module("parse", invocation=1))],
    ),
    (programs.retried_node, [module("tell", call(), status="error"), module("tell", call(), invocation=1)]),
    (programs.subgraph, [module("tell", module("tell", call(), invocation=1), module("judge", call()))]),
    (programs.fan, [module("part"), module("tell", call(), key="0"), module("tell", call(), key="1")]),
    (programs.agent, [module("act", call()), module("tools", tool("search", call()))]),
    (programs.labelled, [module("writer", call()), module("critic", call()), module("judge", call())]),
    (
        programs.decorated,
        [
            module(
                "tell",
                module("helper", module("plan", call()), module("search", call()), module("answer", call()), call()),
            )
        ],
    ),
    (programs.refused, [module("tell", call(status="error"), status="error")]),
    (programs.unnamed, [call(0), call(1)]),
]


@pytest.fixture
def chat_model(model_server: Any) -> ChatOpenAI:
    """LangChain's client of the server."""
    return ChatOpenAI(
        base_url=model_server.url,
        api_key=SecretStr("key"),
        model="tiny",
        max_retries=0,
        http_async_client=httpx.AsyncClient(),  # its own would outlive the test's event loop
    )


def run(body: Callable[[Any], Any], model: Any, store: Path, instruments: list[str]) -> list[dict[str, Any]]:
    """What a program records inside a decorated one."""

    @tracer.program
    def find() -> None:
        given = body(model)
        if inspect.iscoroutine(given):
            asyncio.run(given)

    with tracetune.record(store, instrument=instruments):
        find()
    return trees_of(store.with_name(f"{store.name}.spool"))


@pytest.mark.parametrize(("body", "children"), TABLE)
def test_the_tree_of_a_program(body: Callable[[Any], Any], children: list[Any], chat_model: Any, store: Path) -> None:
    """Every node is an execution with its ordinal, every answer a call in it."""
    assert run(body, chat_model, store, ["langchain"]) == [program("find", *children)]


@pytest.mark.parametrize(("body", "children"), TABLE)
def test_with_the_clients_own_adapter(
    body: Callable[[Any], Any], children: list[Any], chat_model: Any, model_server: Any, store: Path
) -> None:
    """Where OpenAI's client reports the same calls they count once, and its headers name them and their modules."""
    expected = reported_twice([program("find", *children)])
    assert run(body, chat_model, store, ["langchain", "openai"]) == expected
    calls = tracetune.Store(store).sql("SELECT call_id, module FROM calls ORDER BY started_at").rows()
    assert sorted((row["call_id"], row["module"]) for row in calls) == sorted(
        zip(model_server.call_ids, model_server.modules, strict=True)
    )


def test_a_graph_that_nothing_is_around(chat_model: Any, store: Path) -> None:
    """A graph called outside any program is the program, and its own rollout; so is the next."""
    with tracetune.record(store, instrument=["langchain"]):
        programs.invoke(chat_model)
        programs.invoke(chat_model)
    assert trees_of(store.with_name(f"{store.name}.spool")) == [program("LangGraph", *LOOP)] * 2
    rollouts = tracetune.Store(store).sql("SELECT program, status, n_calls, input, example_id FROM rollouts").rows()
    (example_id,) = {row["example_id"] for row in rollouts}
    assert (
        rollouts
        == [
            {
                "program": "LangGraph",
                "status": "ok",
                "n_calls": 4,
                "input": '{"texts":["who?"]}',
                "example_id": example_id,
            }
        ]
        * 2
    )


def test_a_callback_by_hand(chat_model: Any, store: Path) -> None:
    """The handler in a run's configuration does the same, alone or beside the one that all runs have."""
    config: Any = {"callbacks": [TracetuneCallback()]}
    with tracetune.record(store, instrument=["openai"]):
        programs.looped(chat_model).invoke(programs.BEGINNING, config)
    with tracetune.record(store, instrument=["langchain", "openai"]):
        programs.looped(chat_model).invoke(programs.BEGINNING, config)
    alone = [program("LangGraph", *LOOP)]
    assert trees_of(store.with_name(f"{store.name}.spool")) == reported_twice(alone) * 2


def test_it_is_undone(chat_model: Any, store: Path) -> None:
    """After `uninstrument` runs have no handler and what is recorded has no nodes."""
    hooks = list(context._configure_hooks)
    adapters.instrument("langchain")
    assert len(context._configure_hooks) == len(hooks) + 1
    adapters.uninstrument("langchain")
    assert context._configure_hooks == hooks
    assert run(programs.invoke, chat_model, store, []) == [program("find")]


def test_a_closed_rollout(chat_model: Any, model_server: Any, store: Path) -> None:
    """After a rollout was closed from outside its next call raises in the node, and no request goes out."""
    with tracetune.record(store, instrument=["langchain"]), tracer.rollout(id="r1") as rollout:
        rollout.close("timeout")
        with pytest.raises(RolloutClosed, match="r1 was closed with status timeout"):
            programs.invoke(chat_model)
    assert model_server.requests == []


def test_an_answer_that_a_parser_refuses(chat_model: Any, store: Path) -> None:
    """What LangChain's parsers cannot read ends the rollout as a format error, with the text kept."""

    @tracer.program
    def find() -> None:
        (chat_model | JsonOutputParser()).invoke("who?")

    with tracetune.record(store, instrument=["langchain"]), pytest.raises(OutputParserException):
        find()
    rows = tracetune.Store(store)
    assert rows.sql("SELECT status FROM rollouts").rows() == [{"status": "format_error"}]
    assert rows.sql("SELECT module, completion FROM calls").rows() == [{"module": "find", "completion": "answer 0"}]
