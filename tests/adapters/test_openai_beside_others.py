"""The same program around OpenAI's client, told by OpenTelemetry's instrumentation of it and by ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry.exporter.otlp.json.file._log_exporter import FileLogExporter
from opentelemetry.exporter.otlp.json.file.trace_exporter import FileSpanExporter
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from typer.testing import CliRunner

import tracetune
from tracetune import tracer
from tracetune.cli import app

COLUMNS = "module, invocation, turn, messages, completion, finish_reason, model, input_tokens, output_tokens"
SAME = f"SELECT {COLUMNS} FROM calls ORDER BY started_at"


@pytest.mark.parametrize(
    ("capture", "is_latest", "n_records"),
    [("SPAN_ONLY", True, 0), ("EVENT_ONLY", True, 2), ("SPAN_AND_EVENT", True, 2), ("true", False, 6)],
)
def test_opentelemetrys_instrumentation_tells_the_same(
    client: openai.OpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capture: str,
    is_latest: bool,
    n_records: int,
) -> None:
    """With messages in spans or in log records, by newer or older names, it gives the calls that our adapter gives."""
    monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "gen_ai_latest_experimental")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", capture)
    # Its older way, a log record a message, is still there for who has an older helper package.
    monkeypatch.setattr("opentelemetry.instrumentation.openai_v2.is_experimental_mode", lambda: is_latest)

    def ask(question: str) -> str:
        messages: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": question}]
        return client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content or ""

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(str(tmp_path / "theirs.jsonl"))))
    spans = provider.get_tracer("program")
    logs = LoggerProvider()
    logs.add_log_record_processor(SimpleLogRecordProcessor(FileLogExporter(str(tmp_path / "theirs.log.jsonl"))))
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=provider, logger_provider=logs)
    try:
        with spans.start_as_current_span("find", attributes={"gen_ai.operation.name": "invoke_workflow"}):
            for question in ("who?", "what?"):
                with spans.start_as_current_span("ask", attributes={"gen_ai.operation.name": "invoke_agent"}):
                    ask(question)
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
        logs.shutdown()
    theirs, ours = tmp_path / "theirs.duckdb", tmp_path / "ours.duckdb"
    done = CliRunner().invoke(app, ["import", str(theirs), *(str(file) for file in sorted(tmp_path.glob("*.jsonl")))])
    assert done.exit_code == 0, done.output
    assert tracetune.Store(theirs).sql("SELECT count(*) AS n FROM other_records").rows() == [{"n": n_records}]

    @tracer.program
    def find() -> None:
        for question in ("who?", "what?"):
            tracer.module(ask)(question)

    with tracetune.record(ours, instrument=["openai"]):
        find()
    assert tracetune.Store(theirs).sql(SAME).rows() == tracetune.Store(ours).sql(SAME).rows()
    assert [row["invocation"] for row in tracetune.Store(ours).sql(SAME).rows()] == [0, 1]
