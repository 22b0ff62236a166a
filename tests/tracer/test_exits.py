"""Ways to go: however a process ends, what it wrote is whole; what it left open is written where Python still runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from traced_programs import SHOWN, double, module, program

from tracetune import tracer
from tracetune.testing import span_tree, spool_records
from tracetune.tracer import names

PROGRAM = """
import os, signal, sys, threading, time
from tracetune import tracer

@tracer.module
def echo(text):
    return text

@tracer.program
def talk():
    for number in range(50):
        echo("x" * 5000)
    {end}

with tracer.recording(sys.argv[1]), tracer.rollout(example_id="q1", id="r1"):
    talk()
"""

# How the program ends, what the process reports, whether its segment gets its final name, the rollout's last word.
CASES = [
    ("pass", 0, True, "ok"),
    ("sys.exit(3)", 3, True, "error"),
    ("raise ValueError('no')", 1, True, "error"),
    ("os._exit(4)", 4, False, None),
    ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, False, None),
    ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, False, None),
    ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); os.kill(os.getpid(), signal.SIGTERM)", 5, True, "error"),
    ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, True, "error"),
    ("os.abort()", -signal.SIGABRT, False, None),
]


def run(source: str, store: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own that records to the store."""
    return subprocess.run([sys.executable, "-c", source, store], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("end", "code", "is_closed", "status"), CASES, ids=[case[0][:40] for case in CASES])
def test_every_way_to_end_leaves_whole_lines(
    end: str, code: int, is_closed: bool, status: str | None, store: Path, spool: Path
) -> None:
    """All that had ended is there; where the interpreter still ran, the segment is closed and the rollout ended."""
    assert run(PROGRAM.replace("{end}", end), store).returncode == code
    (segment,) = spool.iterdir()
    assert segment.name.endswith(".open.jsonl") != is_closed
    lines = segment.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") and json.loads(line) for line in lines)
    (tree,) = span_tree(spool, attributes=()) if is_closed else [{"children": span_tree(spool, attributes=())}]
    assert [child["name"] for child in tree["children"]] == ["echo"] * 50
    assert [end["status"] for end in spool_records(spool, names.RECORD_ROLLOUT_CLOSED)] == ([status] if status else [])


def test_interrupts_in_a_tight_loop_tear_nothing(store: Path, spool: Path) -> None:
    """SIGINT again and again, in the middle of whatever is under way: every line is whole, and counted."""
    source = """
import signal, sys
from tracetune import tracer

@tracer.module
def echo(text):
    return text

interrupts, is_inside = 0, False

def interrupt(*_):
    # Ctrl-C, where the loop catches it
    global interrupts, is_inside
    interrupts += 1
    if is_inside:
        is_inside = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
with tracer.recording(sys.argv[1]) as recorded:
    print("ready", flush=True)
    while interrupts < 50:
        try:
            is_inside = True
            while True:
                echo("x" * 500)
        except KeyboardInterrupt:
            pass
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    counts = recorded.flush()
    print(counts.spans, sum(file.read_bytes().count(b"\\n") for file in recorded.spool.folder.iterdir()))
"""
    with subprocess.Popen([sys.executable, "-c", source, store], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        counted, written = map(int, process.stdout.read().split())
    assert counted == written
    assert [path.name for path in spool.iterdir() if ".open" in path.name] == []
    assert all(json.loads(line) for segment in spool.iterdir() for line in segment.read_bytes().splitlines())


def test_what_is_open_when_the_process_ends_is_written_as_interrupted(store: Path, spool: Path) -> None:
    """A generator put aside, a thread at work and a call without an answer are there, with what is known of them."""
    source = """
import sys, threading, time
from tracetune import tracer

@tracer.module
def count():
    yield 1
    yield 2
    yield 3

@tracer.module
def work(started):
    tracer.LMCall.begin([{"role": "user", "content": "?"}], model="m").headers()
    call = tracer.LMCall.begin([{"role": "user", "content": "?"}], model="m")
    started.set()
    time.sleep(60)

@tracer.program
def talk():
    numbers = count()
    next(numbers), next(numbers)
    started = threading.Event()
    threading.Thread(target=work, args=(started,), daemon=True).start()
    started.wait()
    return numbers

recording = tracer.recording(sys.argv[1])
recording.__enter__()
kept = talk()
"""
    finished = run(source, store)
    assert (finished.returncode, finished.stderr) == (0, "")
    (segment,) = spool.iterdir()
    assert not segment.name.endswith(".open.jsonl")
    (tree,) = span_tree(spool, attributes=(names.STATUS, names.ERROR_TYPE, names.OUTPUT))
    gone = {names.STATUS: "interrupted"}
    assert tree["attributes"].keys() == {names.OUTPUT}
    assert tree["children"] == [
        {"name": "count", "attributes": {**gone, names.OUTPUT: "[1,2]"}, "children": []},
        {
            "name": "work",
            "attributes": gone,
            "children": [{"name": "chat m", "attributes": {names.ERROR_TYPE: "interrupted"}, "children": []}] * 2,
        },
    ]


def test_a_generator_that_outlives_the_recording_is_kept(store: Path, spool: Path) -> None:
    """Its span is written when it ends, though nothing records by then, and what it calls meanwhile is not traced."""

    @tracer.module
    def items() -> Any:
        yield double(1)
        yield double(2)

    @tracer.program
    def make() -> Any:
        numbers = items()
        next(numbers)
        kept.append(numbers)
        return 1

    kept: list[Any] = []
    with tracer.recording(store):
        make()
    assert list(kept.pop()) == [4]
    assert span_tree(spool, attributes=SHOWN) == [
        program("make", "1", module("items", 0, "[2,4]", module("double", 0, "2"), late=True))
    ]


def test_a_child_that_leaves_by_its_own_exit_closes_its_segment(store: Path, spool: Path) -> None:
    """Its parent's stays as it is until the parent is done, and nothing is written twice."""
    source = """
import os, sys
from tracetune import tracer

@tracer.module
def echo(text):
    return text

@tracer.program
def talk():
    echo("parent")
    child = os.fork()
    if child == 0:
        echo("child")
        sys.exit()
    os.waitpid(child, 0)
    print([path.endswith(".open.jsonl") for path in sorted(os.listdir(sys.argv[1] + ".spool"))])

with tracer.recording(sys.argv[1]):
    talk()
"""
    finished = run(source, store)
    assert finished.stdout == "[False, True]\n" or finished.stdout == "[True, False]\n"
    (tree,) = span_tree(spool, attributes=())
    assert [child["name"] for child in tree["children"]] == ["echo", "echo"]
    assert sorted(path.name.endswith(".open.jsonl") for path in spool.iterdir()) == [False, False]
