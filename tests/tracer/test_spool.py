"""The spool: nothing written is lost, and nothing that goes wrong with it reaches the program."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import span_tree, spool_records
from tracetune.tracer import Spool, SpoolCounts, names
from tracetune.tracer.processes import this_process


@tracer.module
def echo(text: str) -> str:
    """A module."""
    return text


def lines(spool: Path) -> list[dict[str, Any]]:
    """Every line of every segment, each of which must be whole."""
    return [json.loads(line) for segment in sorted(spool.iterdir()) for line in segment.read_text().splitlines()]


def is_locked(segment: Path) -> bool:
    """Whether a writer lives."""
    with segment.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_record_is_one_line_of_otlp(spool: Path) -> None:
    """A record's line is an OpenTelemetry log document with its name, its id, its scope and its body."""
    written = Spool(spool)
    record_id = written.write_record(
        names.RECORD_JOB, {"job_id": "j1", "detail": {"at": 1.5}}, attributes={names.RUN: "try-1", names.STEP: None}
    )
    assert written.counts == SpoolCounts(spans=0, records=1, lost=0)
    written.close()
    (document,) = lines(spool)
    (record,) = document["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
    assert int(record.pop("timeUnixNano")) > 0
    assert record == {
        "eventName": "tracetune.job",
        "body": {"stringValue": '{"job_id":"j1","detail":{"at":1.5}}'},
        "attributes": [
            {"key": names.RECORD_ID, "value": {"stringValue": record_id}},
            {"key": names.RUN, "value": {"stringValue": "try-1"}},
        ],
    }


def test_a_segment_is_locked_while_it_is_open_and_renamed_when_it_is_closed(spool: Path) -> None:
    """A reader can tell a live writer from a closed segment."""
    written = Spool(spool)
    assert not spool.exists()
    written.write_record(names.RECORD_JOB, {})
    (segment,) = spool.iterdir()
    process = this_process()
    _, pid, _, *identity = segment.name.removesuffix(".open.jsonl").split("-")
    assert (pid, identity) == (str(os.getpid()), [process.host, process.boot, process.space, process.started])
    assert segment.name.endswith(".open.jsonl")
    assert is_locked(segment)
    written.close()
    closed = segment.with_name(segment.name.replace(".open.jsonl", ".jsonl"))
    assert list(spool.iterdir()) == [closed]
    assert not is_locked(closed)


def test_a_full_segment_is_closed_and_another_begun(spool: Path) -> None:
    """Segments have a size, and no record is split between two."""
    written = Spool(spool, segment_bytes=1000)
    for number in range(20):
        written.write_record(names.RECORD_JOB, {"number": number})
    written.close()
    assert len(list(spool.iterdir())) > 3
    assert [record["number"] for record in spool_records(spool, names.RECORD_JOB)] == list(range(20))


def test_a_write_after_close_is_kept(spool: Path) -> None:
    """A thread that is late finds an open door."""
    written = Spool(spool)
    written.close()
    written.write_record(names.RECORD_JOB, {"number": 1})
    assert spool_records(spool, names.RECORD_JOB) == [{"number": 1}]


def test_kill_loses_nothing_that_was_written(store: Path, spool: Path) -> None:
    """A process that is killed leaves every span that had ended, and a rollout that had begun."""
    program = f"""
import sys, time
from tracetune import tracer

@tracer.module
def echo(text):
    return text

@tracer.program
def talk():
    for number in range(500):
        echo("x" * number)
    print("done", flush=True)
    time.sleep(60)

with tracer.recording({str(store)!r}), tracer.rollout(example_id="q1", id="r1"):
    talk()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        (segment,) = spool.iterdir()
        assert is_locked(segment)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert segment.name.endswith(".open.jsonl")
    assert not is_locked(segment)
    assert len(span_tree(spool)) == 500
    (started,) = spool_records(spool, names.RECORD_ROLLOUT)
    assert (started["rollout_id"], started["program"], started["pid"]) == ("r1", "talk", process.pid)
    assert spool_records(spool, names.RECORD_ROLLOUT_CLOSED) == []


def test_threads_lose_no_spans(store: Path, spool: Path) -> None:
    """Four threads in a tight loop leave a whole line for each of their calls."""

    def work(thread: int) -> None:
        with tracer.rollout(id=f"r{thread}"):
            for number in range(2500):
                echo(f"{thread} {number}")

    with tracer.recording(store) as recorded:
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert recorded.flush() == SpoolCounts(spans=10_000, records=8, lost=0)
    outputs = [json.loads(node["attributes"][names.OUTPUT]) for node in span_tree(spool)]
    assert sorted(outputs) == sorted(f"{thread} {number}" for thread in range(4) for number in range(2500))


def test_seeds_and_forks_repeat_no_ids(store: Path, spool: Path) -> None:
    """What a program does to `random`, or a fork to our own generator, never gives two spans one id."""
    with tracer.recording(store):
        for _ in range(3):
            random.seed(0)
            echo("parent")
            child = os.fork()
            if child == 0:
                random.seed(0)
                echo("child")
                os._exit(0)
            os.waitpid(child, 0)
    spans = [
        document["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        for document in lines(spool)
        if "resourceSpans" in document
    ]
    assert len(spans) == 6
    assert len({span["spanId"] for span in spans}) == len({span["traceId"] for span in spans}) == 6


def test_a_forked_child_leaves_its_parents_segment_alone(store: Path, spool: Path) -> None:
    """The child writes to a segment of its own, and the parent's stays locked and whole."""
    with tracer.recording(store):
        echo("before")
        (mine,) = spool.iterdir()
        child = os.fork()
        if child == 0:
            echo("child")
            os._exit(0)
        os.waitpid(child, 0)
        (childs,) = set(spool.iterdir()) - {mine}
        assert f"-{child}-" in childs.name
        assert (is_locked(mine), is_locked(childs)) == (True, False)
        echo("after")
    parents, childs_spans = (
        [node["attributes"][names.OUTPUT] for node in span_tree(folder)] for folder in _split(spool, child)
    )
    assert (parents, childs_spans) == (['"before"', '"after"'], ['"child"'])


def _split(spool: Path, child: int) -> tuple[Path, Path]:
    """The parent's segments and the child's, in folders of their own."""
    folders = (spool.parent / "parent", spool.parent / "child")
    for folder in folders:
        folder.mkdir()
    for segment in spool.iterdir():
        shutil.copy(segment, folders[f"-{child}-" in segment.name])
    return folders


def test_a_deleted_folder_is_made_again(store: Path, spool: Path) -> None:
    """Whoever deletes the spool under a running program loses nothing of what is recorded after that."""
    with tracer.recording(store) as recorded:
        echo("before")
        recorded.flush()
        shutil.rmtree(spool)
        assert [echo("after"), echo("and on")] == ["after", "and on"]
        assert recorded.flush() == SpoolCounts(spans=3, records=0, lost=0)
    assert [node["attributes"][names.OUTPUT] for node in span_tree(spool)] == ['"after"', '"and on"']


def test_a_deleted_folder_stays_deleted_when_nothing_more_is_recorded(store: Path, spool: Path) -> None:
    """Leaving the recording does not bring it back."""
    with tracer.recording(store) as recorded:
        echo("before")
        recorded.flush()
        shutil.rmtree(spool)
    assert not spool.exists()


def test_a_full_disk_is_warned_of_once_and_what_fits_later_is_kept(store: Path, spool: Path) -> None:
    """No write raises; what was lost is counted; half a line never spoils the next."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tracer.recording(store) as recorded:
        echo("first")
        (segment,) = spool.iterdir()
        # As on a full disk, a part of the next line still fits.
        resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, hard))
        try:
            with pytest.warns(TracetuneWarning, match=r"can't be written to .* free the disk") as caught:
                assert [echo("lost"), echo("lost too")] == ["lost", "lost too"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        echo("last")
        assert len(caught) == 1
        assert recorded.counts == SpoolCounts(spans=2, records=0, lost=2)
    whole, half, after = segment.with_name(segment.name.replace(".open", "")).read_text().splitlines()
    assert '"stringValue":"\\"first\\""' in whole
    assert len(half) == 100
    assert '"stringValue":"\\"last\\""' in after


def test_warnings_that_are_errors_do_not_reach_the_program(store: Path, spool: Path) -> None:
    """Under `-W error` tracing still raises nothing."""
    spool.write_text("a file where the folder should be")
    with pytest.MonkeyPatch.context() as patch, tracer.recording(store) as recorded:
        patch.setattr("warnings.filters", [("error", None, Warning, None, 0)])
        assert echo("still here") == "still here"
    assert recorded.counts.lost == 1


def test_a_span_that_ends_in_the_middle_of_another_spans_write(
    store: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector may close a generator at any time: neither line hangs, or spoils the other."""
    write, is_inside = os.write, []

    def interrupted_write(descriptor: int, data: bytes) -> int:
        if not is_inside:
            is_inside.append(True)
            echo("inner")
        return write(descriptor, data)

    with tracer.recording(store):
        echo("before")
        monkeypatch.setattr(os, "write", interrupted_write)
        echo("outer")
        monkeypatch.undo()
    outputs = [node["attributes"][names.OUTPUT] for node in span_tree(spool)]
    assert sorted(outputs) == ['"before"', '"inner"', '"outer"']


def test_generators_that_the_collector_closes(store: Path, spool: Path) -> None:
    """Abandoned generators end their spans wherever the collector finds them, and nothing hangs."""

    @tracer.module
    def numbers() -> Iterator[int]:
        yield from range(3)

    with tracer.recording(store) as recorded:
        for _ in range(300):
            abandoned = numbers()
            next(abandoned)
            cycle: list[Any] = [abandoned]
            cycle.append(cycle)
            del abandoned, cycle
            echo("between")
        gc.collect()
        assert recorded.counts == SpoolCounts(spans=600, records=0, lost=0)
    assert len(span_tree(spool)) == 600
