"""Ingest against one Arrow insert of the same rows into the same tables.

Both sides end in a store file of their own with equal tables: one reads a spool as the
tracer writes it, the other is handed the finished rows in Arrow and inserts them.

    python benchmarks/ingest.py
    python benchmarks/ingest.py --spans 100000 --repeats 5
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind

from tracetune.grouping import Store
from tracetune.grouping.queries.results import read_table
from tracetune.tracer import encoding, names

BAR = 0.60
RESOURCE = Resource.create()  # a tracer has one, on each of its lines
SPANS_A_ROLLOUT = 8  # a program, three modules of one call each, and a tool
POOL_CHARACTERS = 1 << 25


def main() -> None:
    """Measure, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.spans - arguments.spans % SPANS_A_ROLLOUT, arguments.repeats)


def measure(folder: Path, n_spans: int, repeats: int) -> None:
    """Alternate the two sides, and print one table."""
    spool = folder / "spool"
    spool.mkdir()
    bytes_written = write_spool(spool / "20260101T000000.000000Z-1-00000000.jsonl", n_spans)
    ingest_seconds, insert_seconds = [], []
    for repeat in range(repeats):
        ingested, inserted = folder / f"ingested-{repeat}.duckdb", folder / f"inserted-{repeat}.duckdb"
        ingest_seconds.append(time_ingest(ingested, spool))
        tables = finished_rows(ingested)
        insert_seconds.append(time_insert(inserted, tables))
        others = finished_rows(inserted)
        check_equal(tables, others)
        written = len(tables["spans"]), len(others["spans"])
        ingested_bytes = ingested.stat().st_size
        ingested.unlink()
        inserted.unlink()
    ours, theirs = statistics.median(ingest_seconds), statistics.median(insert_seconds)
    print(f"{n_spans:,} spans, {bytes_written / n_spans:,.0f} bytes a span in the spool, ", end="")
    print(f"{ingested_bytes / n_spans:,.0f} bytes a span in the store, medians of {repeats}\n")
    print("| | seconds | spans a second | spans written | spans lost |")
    print("| --- | ---: | ---: | ---: | ---: |")
    sides = zip(("ingest", "one Arrow insert of the same rows"), (ours, theirs), written, strict=True)
    for side, seconds, spans in sides:
        print(f"| {side} | {seconds:.2f} | {n_spans / seconds:,.0f} | {spans:,} | {n_spans - spans:,} |")
    print(f"| rate of ingest / rate of insert | {theirs / ours:.2f} | bar: at least {BAR:.2f} | | |")


def time_ingest(store: Path, spool: Path) -> float:
    """Seconds from a full spool to a closed store that holds it."""
    # Linked, not copied: the system would still be writing the copy while ingest is timed.
    shutil.copytree(spool, store.with_name(store.name + ".spool"), copy_function=os.link)
    opened = Store(store)
    start = time.perf_counter()
    report = opened.ingest()
    seconds = time.perf_counter() - start
    assert report.rejected == report.repeated == report.conflicting == 0, report
    return seconds


def time_insert(store: Path, tables: dict[str, Any]) -> float:
    """Seconds from rows in memory to a closed store that holds them."""
    Store(store)
    start = time.perf_counter()
    connection = duckdb.connect(store)
    connection.execute("BEGIN")
    for name, rows in tables.items():
        connection.register("rows", rows)
        connection.execute(f"INSERT INTO {name} SELECT * FROM rows")
    connection.execute("COMMIT")
    connection.close()
    return time.perf_counter() - start


def finished_rows(store: Path) -> dict[str, Any]:
    """Every row of every table that ingest filled."""
    with duckdb.connect(store, read_only=True) as connection:
        listed = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY ALL").fetchall()
        tables = {name: read_table(connection, f"FROM {name}") for (name,) in listed if not name.startswith("schema_")}
    return {name: rows for name, rows in tables.items() if len(rows)}


def check_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Both sides hold the same rows."""
    assert ours.keys() == theirs.keys(), (ours.keys(), theirs.keys())
    connection = duckdb.connect()
    for name, table in ours.items():
        connection.register("ours", table)
        connection.register("theirs", theirs[name])
        [(differing,)] = connection.execute(
            "SELECT count(*) FROM ((FROM ours EXCEPT ALL FROM theirs) UNION ALL (FROM theirs EXCEPT ALL FROM ours))"
        ).fetchall()
        assert differing == 0, f"{name}: {differing} rows differ"


def write_spool(segment: Path, n_spans: int) -> int:
    """A closed segment of whole rollouts, each span in the tracer's own encoding."""
    written = spans = rollout = 0
    with segment.open("wb") as file:
        while spans < n_spans:
            lines = list(rollout_lines(rollout))
            written += file.write(b"".join(lines))
            spans += SPANS_A_ROLLOUT
            rollout += 1
    return written


def rollout_lines(number: int) -> Iterator[bytes]:
    """The lines of one rollout, in the order in which a tracer writes them."""
    rollout_id = f"{number:032x}"
    scope = {
        names.RUN: "bench",
        names.SPLIT: "train",
        names.STEP: number // 48,
        names.ROLLOUT_ID: rollout_id,
        names.EXAMPLE_ID: f"q{number // 12}",
        names.POLICY_VERSION: f"bench@{number // 48}",
    }
    started = 1_767_225_600_000_000_000 + number * 1_000_000_000
    first = number * SPANS_A_ROLLOUT + 1
    begun = {"rollout_id": rollout_id, "index": number % 12, "program": "find", "pid": 1}
    yield record(names.RECORD_ROLLOUT, f"s{rollout_id}", begun, scope, started)
    for module in range(3):
        module_id, call_id = first + 1 + 2 * module, first + 2 + 2 * module
        name = ("write_query", "write_query", "answer")[module]
        place = {
            names.MODULE: name,
            names.KEY: "",
            names.EXECUTION: f"{module_id:016x}",
            names.INVOCATION: module % 2,
        }
        prompt = [{"role": "user", "parts": [{"type": "text", "content": text(call_id, 500)}]}]
        answer = [
            {"role": "assistant", "parts": [{"type": "text", "content": text(call_id, 60)}], "finish_reason": "stop"}
        ]
        call = {
            names.KIND: "lm",
            names.TURN: 0,
            names.OPERATION: "chat",
            names.PROVIDER: "openai",
            names.REQUEST_MODEL: "policy",
            names.RESPONSE_MODEL: "policy",
            names.RESPONSE_ID: f"chatcmpl-{call_id:x}",
            names.TEMPERATURE: 1.0,
            names.INPUT_TOKENS: 180,
            names.OUTPUT_TOKENS: 16,
            names.INPUT_MESSAGES: dumps(prompt),
            names.OUTPUT_MESSAGES: dumps(answer),
        }
        yield span("chat policy", first, call_id, module_id, started + module, scope | place | call)
        inputs = {names.INPUT: dumps({"claim": text(module_id, 300), "notes": text(module_id, 100)})}
        outputs = {names.OUTPUT: dumps(text(module_id, 60))}
        yield span(
            name, first, module_id, first, started + module, scope | place | {names.KIND: "module"} | inputs | outputs
        )
    tool = {names.KIND: "tool", names.INPUT: dumps(text(first, 100)), names.OUTPUT: dumps(text(first + 1, 400))}
    yield span("search", first, first + 7, first, started, scope | tool)
    program = {
        names.KIND: "program",
        names.INPUT: dumps({"claim": text(first, 300)}),
        names.OUTPUT: dumps(text(first, 100)),
    }
    yield span("find", first, first, None, started, scope | program)
    yield record(
        names.RECORD_ROLLOUT_CLOSED, f"e{rollout_id}", {"rollout_id": rollout_id, "status": "ok"}, scope, started
    )
    score = {"rollout_id": rollout_id, "name": "reward", "value": number % 5 / 4, "source": "bench"}
    yield record(names.RECORD_SCORE, f"r{rollout_id}", score, scope, started)


def record(event_name: str, record_id: str, body: dict[str, Any], scope: dict[str, Any], time_ns: int) -> bytes:
    """One record as the tracer writes it."""
    return encoding.record_line(event_name, body, {names.RECORD_ID: record_id, **scope}, time_ns)


def span(
    name: str, trace_id: int, span_id: int, parent_id: int | None, started: int, attributes: dict[str, Any]
) -> bytes:
    """One span as the tracer writes it."""
    return encoding.span_line(
        ReadableSpan(
            name,
            kind=SpanKind.CLIENT if attributes[names.KIND] == "lm" else SpanKind.INTERNAL,
            context=SpanContext(trace_id, span_id, is_remote=False),
            parent=SpanContext(trace_id, parent_id, is_remote=False) if parent_id is not None else None,
            attributes=attributes,
            start_time=started,
            end_time=started + 1_000_000,
            instrumentation_scope=InstrumentationScope(encoding.SCOPE_NAME),
            resource=RESOURCE,
        )
    )


@cache
def pool() -> str:
    """Words as often as a language has them (the n-th most frequent 1/n as often as the first), in no order."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    frequency = 1 / np.arange(1, 27)
    lengths = generator.integers(2, 11, size=20_000)
    words = np.array(["".join(generator.choice(letters, size=size, p=frequency / frequency.sum())) for size in lengths])
    ranks = (generator.zipf(1.12, size=POOL_CHARACTERS // 5) - 1) % len(words)
    return " ".join(words[ranks])[:POOL_CHARACTERS]


def text(seed: int, size: int) -> str:
    """About `size` characters that differ from span to span, and compress about as English does."""
    start = seed * 2_654_435_761 % (POOL_CHARACTERS - size)
    return f"{seed} {pool()[start : start + size]}"


def dumps(value: Any) -> str:
    """JSON as the tracer writes it."""
    return orjson.dumps(value).decode()


if __name__ == "__main__":
    main()
