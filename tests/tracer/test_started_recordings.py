"""Recordings of services: on in every thread and forked process until they are stopped, or the process ends."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tracetune as tt
from tracetune import tracer
from tracetune.errors import InvalidInput, TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import names


@tt.module
def echo(text: str) -> str:
    """A module."""
    return text


def recorded(spool: Path) -> list[tuple[str, str]]:
    """The run and the output of each call in a spool, in order of their outputs."""
    nodes = span_tree(spool, attributes=(names.RUN, names.OUTPUT))
    return sorted((node["attributes"][names.OUTPUT], node["attributes"][names.RUN]) for node in nodes)


def test_every_thread_is_recorded_until_the_stop(store: Path, spool: Path) -> None:
    """One that is older than the recording, its pool, the starter's own; a block inside has a run of its own."""
    go, done = threading.Event(), threading.Event()

    def serve() -> None:
        go.wait()
        echo("older thread")
        done.set()

    older = threading.Thread(target=serve)
    older.start()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        recording = tt.start_recording(store, run="service")
        echo("starter")
        pool.submit(echo, "pool").result()
        with tt.record(store, run="inside"):
            echo("block")
        go.set()
        done.wait()
        older.join()
        assert recording.counts.spans == 4
        recording.stop()
        recording.stop()
        pool.submit(echo, "after").result()
    echo("after")
    assert recorded(spool) == [
        ('"block"', "inside"),
        ('"older thread"', "service"),
        ('"pool"', "service"),
        ('"starter"', "service"),
    ]
    assert [path.name for path in spool.iterdir() if ".open" in path.name] == []


def test_it_may_be_stopped_where_it_was_not_started(store: Path, spool: Path) -> None:
    """Another thread ends it, and a new one may begin."""
    recording = tt.start_recording(store, run="first")
    echo("a")
    thread = threading.Thread(target=recording.stop)
    thread.start()
    thread.join()
    second = tt.start_recording(store, run="second")
    echo("b")
    second.stop()
    assert recorded(spool) == [('"a"', "first"), ('"b"', "second")]


def test_it_is_refused_while_another_is_on(store: Path) -> None:
    """Whose runs would be mixed; nothing is changed by it."""
    recording = tt.start_recording(store)
    for path in (store, store.with_name("other.duckdb")):
        with pytest.raises(InvalidInput, match=r"is already recording to .*; stop that recording first"):
            tt.start_recording(path)
    recording.stop()
    with tt.record(store), pytest.raises(InvalidInput, match="is already recording"):
        tt.start_recording(store)


def test_adapters_are_switched_off_by_the_stop(store: Path) -> None:
    """As at the end of a block."""
    from openai.resources.chat.completions import Completions

    before = Completions.create
    recording = tt.start_recording(store, instrument=["openai"])
    assert Completions.create is not before
    recording.stop()
    assert Completions.create is before


def test_it_ends_with_the_process(store: Path, spool: Path) -> None:
    """Kept by nobody, in a service that is told to end: all is there, the segment closed, the processors flushed."""
    source = """
import sys
import tracetune as tt
from opentelemetry.sdk.trace import SpanProcessor

class Sender(SpanProcessor):
    def force_flush(self, timeout_millis=30000):
        print("flushed", flush=True)
        return True

@tt.module
def echo(text):
    return text

def start():
    tt.start_recording(sys.argv[1], run="service", processors=[Sender()])

start()
echo("a")
"""
    done = subprocess.run([sys.executable, "-c", source, store], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("flushed\n", "")
    assert recorded(spool) == [('"a"', "service")]
    assert [path.name for path in spool.iterdir() if ".open" in path.name] == []


def test_workers_that_are_forked_after_the_start_are_recorded(store: Path, spool: Path) -> None:
    """As servers do that load a program once: each worker writes a segment of its own, and stops on its own."""
    recording = tt.start_recording(store, run="service")
    echo("before")
    for number in range(2):
        child = os.fork()
        if child == 0:
            try:
                echo(f"worker {number}")
                recording.stop()
                echo("stopped")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    echo("parent")
    recording.stop()
    assert [output for output, _ in recorded(spool)] == ['"before"', '"parent"', '"worker 0"', '"worker 1"']
    assert len(list(spool.iterdir())) == 3


@pytest.mark.parametrize("record", [tt.record, tracer.recording])
def test_a_recording_that_is_dropped_says_so(record, store: Path, spool: Path) -> None:
    """It ends, and one warning says what to do."""
    with pytest.warns(TracetuneWarning, match=r"dropped; use it in a with statement, or start_recording") as caught:
        record(store).__enter__()
    assert len(caught) == 1
    assert echo("not recorded") == "not recorded"
    assert not spool.exists()


def test_a_block_that_a_generator_leaves_is_not_dropped(store: Path, spool: Path) -> None:
    """The generator is closed, and with it the block is left as any other."""

    def recorded_items() -> Iterator[str]:
        with tt.record(store):
            yield echo("a")

    next(recorded_items())
    gc.collect()
    assert [output for output, _ in recorded(spool)] == ['"a"']
