"""What tracing costs: a traced call against a bare OpenTelemetry span, and what is lost (nothing should be).

Both sides do the same work: encode the same arguments and the same result as JSON into
attributes of one span. The bare side exports to nowhere, through a queue that is large
enough to drop nothing; ours is on disk when the call returns. Sides alternate, and the
median over the rounds is taken.

    python benchmarks/tracing.py
    python benchmarks/tracing.py --calls 500 --rounds 3 --burst 4000
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from tracetune import tracer
from tracetune.tracer import names

HEAVY = (
    "torch",
    "duckdb",
    "openai",
    "transformers",
    "pyarrow",
    "pandas",
    "numpy",
    "opentelemetry.sdk.trace",
    "pydantic",
)


class Nowhere(SpanExporter):
    """Counts what it is given, and keeps the last for the comparison."""

    def __init__(self) -> None:
        self.count = 0
        self.last: ReadableSpan | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take a batch."""
        self.count += len(spans)
        self.last = spans[-1]
        return SpanExportResult.SUCCESS


def answer(question: str, hint: str) -> str:
    """What is traced: 1 KB in, 1 KB out."""
    return question + hint


traced = tracer.module(answer)


def microseconds(call: Callable[[], object], calls: int) -> float:
    """Mean time of one call."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls * 1e6


def traced_call(folder: Path, calls: int, rounds: int, question: str, hint: str) -> tuple[float, float, int, int, int]:
    """Microseconds of a traced call and of a bare span with the same JSON; spans made, written and exported."""
    nowhere = Nowhere()
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    total = calls * (rounds + 1) + 1
    provider.add_span_processor(BatchSpanProcessor(nowhere, max_queue_size=total, max_export_batch_size=512))
    bare_tracer = provider.get_tracer("bare")

    def bare() -> str:
        with bare_tracer.start_as_current_span("answer") as span:
            span.set_attribute(names.INPUT, orjson.dumps({"question": question, "hint": hint}).decode())
            result = answer(question, hint)
            span.set_attribute(names.OUTPUT, orjson.dumps(result).decode())
        return result

    ours: list[float] = []
    theirs: list[float] = []
    with tracer.recording(folder / "calls.duckdb") as recorded, tracer.rollout(example_id="q1"):
        assert bare() == traced(question, hint)
        for round_ in range(rounds + 1):
            mine = microseconds(lambda: traced(question, hint), calls)
            bares = microseconds(bare, calls)
            provider.force_flush()
            if round_:  # the first round warms up
                ours.append(mine)
                theirs.append(bares)
        counts = recorded.flush()
    assert (counts.spans, counts.lost) == (total, 0), counts
    assert nowhere.count == total, nowhere.count
    provider.shutdown()
    *_, segment = sorted((folder / "calls.duckdb.spool").glob("*.jsonl"))
    *_, line = (line for line in segment.read_bytes().splitlines() if line.startswith(b'{"resourceSpans"'))
    last = orjson.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
    attributes = {item["key"]: item["value"].get("stringValue") for item in last["attributes"]}
    assert nowhere.last is not None
    assert nowhere.last.attributes is not None
    for name in (names.INPUT, names.OUTPUT):
        assert attributes[name] == nowhere.last.attributes[name]
    return statistics.median(ours), statistics.median(theirs), total, counts.spans, nowhere.count


def idle_call(calls: int, rounds: int) -> tuple[float, float]:
    """Microseconds of a decorated call with nothing recording, and of the bare call."""
    assert traced("a", "b") == answer("a", "b")
    pairs = [
        (microseconds(lambda: traced("a", "b"), calls), microseconds(lambda: answer("a", "b"), calls))
        for _ in range(rounds)
    ]
    return statistics.median(mine for mine, _ in pairs), statistics.median(bare for _, bare in pairs)


def burst(folder: Path, calls: int, threads: int) -> tuple[int, int, float]:
    """Spans written, spans lost and seconds, when threads call in a tight loop."""

    def work() -> None:
        with tracer.rollout(example_id="q1"):
            for _ in range(calls // threads):
                traced("a" * 512, "b" * 512)

    with tracer.recording(folder / "burst.duckdb") as recorded:
        workers = [threading.Thread(target=work) for _ in range(threads)]
        started = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = time.perf_counter() - started
        counts = recorded.flush()
    written = sum(
        line.startswith(b'{"resourceSpans"')
        for segment in (folder / "burst.duckdb.spool").glob("*.jsonl")
        for line in segment.read_bytes().splitlines()
    )
    assert written == counts.spans
    return written, calls // threads * threads - written, seconds


def import_time(package: str, rounds: int) -> tuple[float, list[str]]:
    """Seconds that an import takes in a fresh interpreter, and which heavy packages it brings in."""
    program = (
        "import sys, time; started = time.perf_counter()\n"
        f"import {package}\n"
        "print(time.perf_counter() - started)\n"
        f"print(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    seconds, heavy = [], ""
    for _ in range(rounds):
        shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        first, heavy = shown.split("\n")[:2]
        seconds.append(float(first))
    return statistics.median(seconds), heavy.split()


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="calls a round (default 2000)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds, alternating between the sides (default 15)")
    parser.add_argument("--burst", type=int, default=100_000, help="calls in the tight loop (default 100000)")
    parser.add_argument("--threads", type=int, default=4, help="threads of the tight loop (default 4)")
    options = parser.parse_args()

    # Redaction looks at what a text has beside letters: a text of one letter has the least, prose has some.
    prose = " ".join((Path(__file__).resolve().parents[1] / "LICENSE").read_text(encoding="utf-8").split())
    with tempfile.TemporaryDirectory() as name:
        mine, bare, made, ours, theirs = traced_call(Path(name), options.calls, options.rounds, "q" * 512, "h" * 512)
    with tempfile.TemporaryDirectory() as name:
        of_prose, bare_of_prose, *_ = traced_call(
            Path(name), options.calls, options.rounds, prose[1000:1512], prose[5000:5512]
        )
    with tempfile.TemporaryDirectory() as name:
        written, lost, seconds = burst(Path(name), options.burst, options.threads)
    idle, plain = idle_call(options.calls * 20, options.rounds)
    print("| what | ours | beside it | ratio | bar |")
    print("| --- | --- | --- | --- | --- |")
    print(
        f"| traced call, 1 KB in and out, on disk | {mine:.1f} µs | bare span, exported to nowhere: {bare:.1f} µs "
        f"| {mine / bare:.2f}x | at most 1.25x |"
    )
    print(
        f"| the same with English prose | {of_prose:.1f} µs | bare span: {bare_of_prose:.1f} µs "
        f"| {of_prose / bare_of_prose:.2f}x | at most 1.25x |"
    )
    print(
        f"| {made:,} spans on each side of it | {ours:,} written, {made - ours:,} lost "
        f"| {theirs:,} exported, {made - theirs:,} lost | | none lost |"
    )
    print(
        f"| decorated call, nothing recording | {idle:.2f} µs | bare call: {plain:.2f} µs "
        f"| {idle - plain:.2f} µs more | at most 2 µs more |"
    )
    print(
        f"| {options.burst:,} calls from {options.threads} threads | {written:,} spans written in {seconds:.1f} s "
        f"| {lost:,} lost | {lost / options.burst:.2%} | none lost |"
    )
    took, heavy = import_time("tracetune", options.rounds)
    print(
        f"| import tracetune | {took:.3f} s | brings in: {', '.join(heavy) or 'none of the heavy ones'} | "
        "| at most 0.25 s; no torch, duckdb, openai |"
    )


if __name__ == "__main__":
    main()
