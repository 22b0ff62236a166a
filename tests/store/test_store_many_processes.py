"""Eight processes at one store, half of them killed, while two others ingest: every acknowledged span is there once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

from tracetune.grouping import Store
from tracetune.grouping.ingest.pipeline import IngestReport
from tracetune.tracer import spool_folder

ROLLOUTS = 15

COUNTED = ("spans", "records", "rejected", "repeated", "conflicting")

# Notes each span's id with one write of its own, after the traced call has returned.
WORKER = """
import os, sys, time
from opentelemetry import trace
from tracetune import tracer

store, run, notes, rollouts = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
noted = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@tracer.module
def echo(text):
    return f"{trace.get_current_span().get_span_context().span_id:016x}"

@tracer.program
def talk(rollout):
    for number in range(10):
        span_id = echo("x" * (number * 500))
        os.write(noted, f"{rollout.id} {span_id}\\n".encode())
        time.sleep(0.001)

with tracer.recording(store, run=run):
    print("ready", flush=True)
    sys.stdin.readline()
    for turn in range(rollouts):
        with tracer.rollout(example_id="q1", id=f"{run}-{turn}") as rollout:
            talk(rollout)
        os.write(noted, f"{rollout.id} ended\\n".encode())
"""

INGEST = """
import sys
from tracetune.grouping import Store
store = Store(sys.argv[1], wait=60)
print("ready", flush=True)
for line in sys.stdin:
    report = store.ingest()
    print(report.spans, report.records, report.rejected, report.repeated, report.conflicting, flush=True)
"""


def started(*arguments: object) -> subprocess.Popen[str]:
    """A process that waits to be told."""
    command = [sys.executable, "-c", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def counted(report: IngestReport) -> dict[str, int]:
    """The counts of one ingest that are compared."""
    return {name: getattr(report, name) for name in COUNTED}


def tell(process: subprocess.Popen[str]) -> None:
    """Let it go on."""
    process.stdin.write("go\n")
    process.stdin.flush()


def test_eight_processes_half_of_them_killed_lose_and_repeat_nothing(tmp_path):
    """What was acknowledged is there once, the rollouts of the killed are interrupted, half a line is told of."""
    path = tmp_path / "traces.duckdb"
    store = Store(path, wait=60)
    # Those that will be killed go on until they are.
    counts = [ROLLOUTS if number < 4 else 10**6 for number in range(8)]
    workers = [started(WORKER, path, f"w{n}", tmp_path / f"w{n}.notes", count) for n, count in enumerate(counts)]
    ingester = started(INGEST, path)
    for process in (*workers, ingester):
        assert process.stdout.readline() == "ready\n"

    here: Counter[str] = Counter()
    elsewhere: Counter[str] = Counter()
    is_over = threading.Event()

    def ingest_here() -> None:
        while not is_over.is_set():
            here.update(counted(store.ingest()))

    def ingest_elsewhere() -> None:
        while not is_over.is_set():
            tell(ingester)
            elsewhere.update(dict(zip(COUNTED, map(int, ingester.stdout.readline().split()), strict=True)))

    threads = [threading.Thread(target=ingest_here), threading.Thread(target=ingest_elsewhere)]
    for worker in workers:
        tell(worker)
    for thread in threads:
        thread.start()
    moments = random.Random(20)
    *early, last = workers[4:]
    for victim in early:
        time.sleep(moments.uniform(0.05, 0.3))
        victim.send_signal(signal.SIGKILL)
    for worker in workers[:4]:
        assert worker.wait(60) == 0
    is_over.set()
    for thread in threads:
        thread.join()
    for victim in early:
        victim.wait(60)
    here.update(counted(store.ingest()))  # so that of the killed the last alone leaves a segment
    last.send_signal(signal.SIGKILL)
    assert [victim.wait(60) for victim in workers[4:]] == [-signal.SIGKILL] * 4
    ingester.communicate()

    (segment,) = spool_folder(path).glob("*.open.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"resourceSpans":[{"resource":{},"scopeSp')
    report = store.ingest()
    assert report.rejected >= 1
    totals = here + elsewhere + Counter(counted(report))
    assert (totals["repeated"], totals["conflicting"]) == (0, 0)
    rejected = (spool_folder(path) / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == totals["rejected"]
    assert '{\\"resourceSpans\\":[{\\"resource\\":{},\\"scopeSp"' in rejected[-1]

    found = [row["span_id"] for row in store.sql("SELECT span_id FROM spans").rows()]
    assert (len(found), len(set(found))) == (totals["spans"], totals["spans"])
    statuses = {row["rollout_id"]: row["status"] for row in store.sql("SELECT rollout_id, status FROM rollouts").rows()}
    acknowledged: list[str] = []
    calls: Counter[str] = Counter()
    ended = set()
    for notes in tmp_path.glob("*.notes"):
        for rollout_id, said in map(str.split, notes.read_text().splitlines()):
            if said == "ended":
                ended.add(rollout_id)
            else:
                acknowledged.append(said)
                calls[rollout_id] += 1
    assert set(acknowledged) <= set(found)
    assert {rollout_id for rollout_id in ended if rollout_id < "w4"} == {
        f"w{number}-{turn}" for number in range(4) for turn in range(ROLLOUTS)
    }
    assert {statuses[rollout_id] for rollout_id in ended} == {"ok"}
    # A program that has not made all its calls has not ended, whatever else was under way.
    cut_off = [rollout_id for rollout_id in calls if rollout_id not in ended and calls[rollout_id] < 10]
    assert {statuses[rollout_id] for rollout_id in cut_off} <= {"interrupted"}
    assert len(calls.keys() - ended) <= 4
