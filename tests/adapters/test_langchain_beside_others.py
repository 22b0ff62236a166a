"""The same LangChain program, told by others' instrumentations and by ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import langchain_programs as programs
import pytest
from langchain_openai import ChatOpenAI
from openinference.instrumentation.langchain import LangChainInstrumentor
from opentelemetry import trace
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from pydantic import SecretStr
from typer.testing import CliRunner

import tracetune
from tracetune.cli import app

SAME = "SELECT module, invocation, turn, messages, completion, finish_reason FROM calls ORDER BY started_at"


@pytest.fixture
def chat_model(model_server: Any) -> ChatOpenAI:
    """LangChain's client of the server."""
    return ChatOpenAI(base_url=model_server.url, api_key=SecretStr("key"), model="tiny", max_retries=0)


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """The provider of an application that traces itself."""
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return provider


@contextmanager
def openinference(provider: TracerProvider) -> Iterator[None]:
    """OpenInference's instrumentation, on meanwhile."""
    instrumentor = LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield
    finally:
        instrumentor.uninstrument()


@pytest.mark.parametrize("body", [programs.invoke, programs.subgraph, programs.tokens, programs.agent])
def test_openinference_tells_the_same(body: Any, chat_model: Any, model_server: Any, tmp_path: Path) -> None:
    """Spans that OpenInference recorded, imported, give the same calls as our own adapter, and the same program."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(str(tmp_path / "theirs.jsonl"))))
    with openinference(provider):
        body(chat_model)
    provider.shutdown()
    theirs, ours = tmp_path / "theirs.duckdb", tmp_path / "ours.duckdb"
    done = CliRunner().invoke(app, ["import", str(theirs), str(tmp_path / "theirs.jsonl")])
    assert done.exit_code == 0, done.output
    with tracetune.record(ours, instrument=["langchain"]):
        body(chat_model)
    imported = tracetune.Store(theirs).sql(SAME).rows()
    assert len(imported) == len(model_server.requests) / 2
    assert imported == tracetune.Store(ours).sql(SAME).rows()
    of_rollouts = "SELECT program, status, n_calls FROM rollouts"
    assert tracetune.Store(theirs).sql(of_rollouts).rows() == tracetune.Store(ours).sql(of_rollouts).rows()


@pytest.mark.parametrize("instruments", [["langchain"], ["langchain", "openai"]], ids=["alone", "with openai"])
@pytest.mark.parametrize("body", [programs.invoke, programs.tokens, programs.agent])
def test_openinference_in_the_same_process(
    body: Any, instruments: list[str], chat_model: Any, model_server: Any, tmp_path: Path, application: Any
) -> None:
    """Where OpenInference records beside us a call counts once, and the one that counts knows its response."""

    @tracetune.program
    def find() -> None:
        body(chat_model)

    with openinference(application), tracetune.record(tmp_path / "t.duckdb", instrument=instruments):
        with tracetune.rollout() as rollout:
            find()
        assert len(rollout.calls) == len(model_server.requests)
    rows = tracetune.Store(tmp_path / "t.duckdb").sql("SELECT response_id FROM calls ORDER BY started_at").rows()
    # LangChain gives no id with a stream; OpenAI's client does.
    is_told = body is not programs.tokens or "openai" in instruments
    assert [row["response_id"] for row in rows] == [
        f"chatcmpl-{number}" if is_told else None for number in range(1, len(model_server.requests) + 1)
    ]
