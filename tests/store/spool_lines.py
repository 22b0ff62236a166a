"""Spool lines for tests, in the tracer's own encoding, and whole tables to compare."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind

from tracetune.tracer import encoding, names
from tracetune.tracer.processes import Process

START = 1_767_225_600_000_000_000  # 2026-01-01, in nanoseconds


def span(
    name: str,
    span_id: int,
    *,
    parent: int | None = None,
    trace_id: int = 1,
    at: int = 0,
    lasts: int = 1_000_000,
    scope: str = encoding.SCOPE_NAME,
    is_client: bool | None = None,
    **attributes: Any,
) -> bytes:
    """One span as one line; attributes by the names of the constants in `tracer/names.py`. An LM call is a client's."""
    if is_client is None:
        is_client = attributes.get("KIND") == "lm"
    return encoding.span_line(
        ReadableSpan(
            name,
            kind=SpanKind.CLIENT if is_client else SpanKind.INTERNAL,
            context=SpanContext(trace_id, span_id, is_remote=False),
            parent=SpanContext(trace_id, parent, is_remote=False) if parent is not None else None,
            attributes={getattr(names, key): value for key, value in attributes.items()},
            start_time=START + at,
            end_time=START + at + lasts,
            instrumentation_scope=InstrumentationScope(scope),
        )
    )


def record(event_name: str, record_id: str, *, at: int = 0, **body: Any) -> bytes:
    """One record as one line."""
    return encoding.record_line(event_name, body, {names.RECORD_ID: record_id}, START + at)


def write_segment(store: Path, name: str, *lines: bytes) -> Path:
    """A closed segment with those lines in the spool of a store."""
    folder = store.with_name(store.name + ".spool")
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def segment_name(process: Process, number: int = 0) -> str:
    """A segment's name without suffixes, as a process gives it."""
    identity = f"{process.host}-{process.boot}-{process.space}-{process.started}"
    return f"20260101T000000.{number:06d}Z-{process.pid}-00000000-{identity}"


def gone_process() -> Process:
    """A process of this machine that has ended."""
    code = "from tracetune.tracer.processes import this_process; print(this_process())"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    process = Process.of(text.strip())
    assert process is not None
    return process


def tables_of(store: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, in one order."""
    with duckdb.connect(store, read_only=True) as connection:
        listed = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY ALL").fetchall()
        return {
            name: sorted(connection.execute(f"FROM {name}").fetchall(), key=repr)
            for (name,) in listed
            if not name.startswith("schema_")
        }


def answer(text: str) -> str:
    """One choice, as the tracer records it."""
    return f'[{{"role":"assistant","parts":[{{"type":"text","content":"{text}"}}],"finish_reason":"stop"}}]'


def a_rollout(number: int = 0) -> list[bytes]:
    """A rollout of two executions of `hop`, the second with a retry, and one of `answer` that calls nothing."""
    rollout, base = f"r{number}", 100 * (number + 1)
    scope = {"RUN": "try-1", "SPLIT": "train", "STEP": 3, "ROLLOUT_ID": rollout, "EXAMPLE_ID": "q1"}
    at = 1_000_000_000 * number
    lines = [
        record(
            names.RECORD_ROLLOUT, f"start-{rollout}", at=at, rollout_id=rollout, run="try-1", split="train", step=3,
            index=number, program="find", example_id="q1", input={"claim": "c"}, policy_version="try-1@2", pid=1,
        )
    ]  # fmt: skip
    # The execution with ordinal 1 made no call.
    for place, (execution, ordinal, turn) in enumerate([(1, 0, 0), (3, 2, 0), (3, 2, 1)]):
        hop = {"MODULE": "hop", "KEY": "", "EXECUTION": f"{base + execution:016x}", "INVOCATION": ordinal}
        call = base + 10 + place
        lines.append(
            record(
                names.RECORD_COMPLETION, f"completion-{call}", at=at + place, response_id=f"response-{call}", choice=0,
                model="policy", policy_version="try-1@3", prompt_token_ids=[1, 2], completion_token_ids=[3, call],
                completion_logprobs=[-0.5, -0.25], text=f"carl {call}", finish_reason="stop",
                sampling={"temperature": 1.0, "top_p": 1.0}, call_id=f"{call:016x}", module="hop",
                started_at=START, ended_at=START + 1,
            )
        )  # fmt: skip
        lines.append(
            span(
                "chat policy", call, parent=base + execution, trace_id=base, at=at + place, **scope, **hop,
                KIND="lm", OPERATION="chat", TURN=turn, REQUEST_MODEL="policy", RESPONSE_ID=f"response-{call}",
                TEMPERATURE=1.0, INPUT_MESSAGES='[{"role":"user","parts":[{"type":"text","content":"who?"}]}]',
                OUTPUT_MESSAGES=answer(f"carl {call}"),
            )
        )  # fmt: skip
    lines += [
        span("hop", base + 1, parent=base, trace_id=base, at=at, KIND="module", MODULE="hop", **scope),
        span(
            "find", base, trace_id=base, at=at, lasts=5_000_000, **scope,
            KIND="program", INPUT='{"claim":"c"}', OUTPUT='["a","b"]', POLICY_VERSION="try-1@2",
        ),
        record(names.RECORD_ROLLOUT_CLOSED, f"end-{rollout}", at=at + 6_000_000, rollout_id=rollout, status="ok",
               error_type=None, output=["a", "b"]),
        record(names.RECORD_SCORE, f"score-{rollout}", at=at + 7_000_000, rollout_id=rollout, call_id=None, module=None,
               name="reward", value=number / 2, source="user", feedback=""),
    ]  # fmt: skip
    return lines
