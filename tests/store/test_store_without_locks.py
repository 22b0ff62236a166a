"""Locks that lie, or are refused: whatever they say, nothing that was written is lost, and nobody alive is dead."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from store.spool_lines import a_rollout, gone_process, record, segment_name, write_segment

from tracetune.errors import TracetuneWarning
from tracetune.grouping import IngestReport, Store
from tracetune.grouping.ingest import segments
from tracetune.tracer import Spool, names, spool_folder
from tracetune.tracer.processes import Process, this_process

WRITERS = 3
CALLS = 150

# `flock` as a folder has it that is shared between machines: granted to whoever asks.
LYING = """
import fcntl
fcntl.flock = lambda descriptor, operation: None
"""
LYING_IN_C = "int flock(int descriptor, int operation) { return 0; }"

REFUSING = """
import errno, fcntl, os

def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

fcntl.flock = refuse
"""

WRITER = """
import os, sys, time
from tracetune import tracer
from tracetune.tracer import Spool, spool_folder

store, name, calls = sys.argv[1], sys.argv[2], int(sys.argv[3])

@tracer.module
def echo(text):
    return text

@tracer.program
def talk():
    for number in range(calls):
        echo(f"{name} {number}")
        time.sleep(0.003)
        if number % 40 == 39:
            time.sleep(0.1)  # longer than the spool looks away from its segment

with tracer.recording(store, run=name) as recorded:
    recorded.spool._segment_bytes = 30_000
    with tracer.rollout(example_id="q1", id=name):
        talk()
    print(recorded.counts.spans, recorded.counts.lost, flush=True)
"""

# Takes in what there is until it is told to stop; says how many rollouts it has ever seen interrupted.
INGESTER = """
import sys, threading
from tracetune.grouping import Store

store, is_over, interrupted = Store(sys.argv[1], wait=60), threading.Event(), 0
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
print("ready", flush=True)
while not is_over.is_set():
    store.ingest()
    interrupted += store.sql("SELECT count(*) AS n FROM rollouts WHERE status = 'interrupted'").rows()[0]["n"]
print(interrupted, flush=True)
"""


def with_flock(source: str, folder: Path) -> dict[str, str]:
    """An environment in which Python's flock is another."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(source)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def with_preloaded_flock(source: str, folder: Path) -> dict[str, str]:
    """An environment in which every program's flock is another, where there is a compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a library is preloaded on Linux, and needs a C compiler")
    folder.mkdir()
    (folder / "flock.c").write_text(source)
    library = folder / "flock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "flock.c"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def started(source: str, environment: dict[str, str], *arguments: object) -> subprocess.Popen[str]:
    """A process in that environment."""
    command = [sys.executable, "-W", "ignore", "-c", source, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def write_and_ingest(path: Path, environment: dict[str, str]) -> int:
    """Writers and a reader side by side; gives how many rollouts were taken for interrupted."""
    Store(path)
    ingester = started(INGESTER, environment, path)
    assert ingester.stdout.readline() == "ready\n"
    writers = [started(WRITER, environment, path, f"w{number}", CALLS) for number in range(WRITERS)]
    assert [writer.communicate()[0] for writer in writers] == [f"{CALLS + 1} 0\n"] * WRITERS
    return int(ingester.communicate()[0])


@pytest.mark.parametrize(
    ("make", "source"),
    [
        pytest.param(with_preloaded_flock, LYING_IN_C, id="preloaded"),
        pytest.param(with_flock, LYING, id="lying"),
        pytest.param(with_flock, REFUSING, id="refusing"),
    ],
)
def test_locks_that_exclude_nobody_lose_nothing(tmp_path, make, source):
    """Every call is in the store once, and no rollout under way was ever taken for interrupted."""
    path = tmp_path / "traces.duckdb"
    interrupted = write_and_ingest(path, make(source, tmp_path / "flock"))
    store = Store(path)
    texts = [row["input"] for row in store.sql("SELECT input FROM spans WHERE kind = 'module'").rows()]
    assert sorted(texts) == sorted(
        f'{{"text":"w{writer} {number}"}}' for writer in range(WRITERS) for number in range(CALLS)
    )
    assert interrupted == 0
    assert store.sql("SELECT DISTINCT status FROM rollouts").rows() == [{"status": "ok"}]
    assert list(spool_folder(path).glob("*.jsonl")) == []


@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"])
def test_a_refused_lock_is_warned_of_once_and_all_is_written(tmp_path, monkeypatch, name):
    """The warning says that nothing is lost and what the missing lock costs."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

    monkeypatch.setattr("fcntl.flock", refuse)
    spool = Spool(tmp_path / "traces.duckdb.spool", segment_bytes=1)
    with pytest.warns(TracetuneWarning, match=r"refuses locks .* everything is written all the same"):
        spool.write_record(names.RECORD_JOB, {"job_id": "0"})
    for number in range(1, 5):  # another segment each; a second warning would be an error here
        spool.write_record(names.RECORD_JOB, {"job_id": str(number)})
    assert spool.counts.lost == 0
    store = Store(tmp_path / "traces.duckdb")
    assert store.sql("SELECT count(*) AS n FROM jobs").rows() == [{"n": 5}]
    spool.close()


def a_process_elsewhere() -> Process:
    """A process of another machine, with the id of one that runs here."""
    return replace(this_process(), host="00000000", boot="11111111")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store is."""
    return tmp_path / "traces.duckdb"


def begun(path: Path, process: Process, rollout_id: str = "r1") -> Path:
    """An open segment of that process, in which a rollout began."""
    line = record(
        names.RECORD_ROLLOUT, "s1", rollout_id=rollout_id, program="find", pid=process.pid, process=str(process)
    )
    return write_segment(path, f"{segment_name(process)}.open", line)


def status_of(store: Store) -> str | None:
    """The status of the one rollout."""
    [row] = store.sql("SELECT status FROM rollouts").rows()
    return row["status"]


def test_another_machines_segment_is_left_until_it_is_quiet(path, monkeypatch):
    """Then its rollout is interrupted and it is taken; quiet once more, it is deleted."""
    segment, store = begun(path, a_process_elsewhere()), Store(path)
    assert status_of(store) is None
    assert segment.exists()
    monkeypatch.setattr(segments, "QUIET_SECONDS", 0.0)
    assert status_of(store) == "interrupted"
    taken = segment.with_name(segment.name.replace(".open.", ".taken."))
    assert list(segment.parent.iterdir()) == [taken]
    monkeypatch.undo()
    store.ingest()
    assert taken.exists()
    with taken.open("ab") as file:  # by a writer that had not looked yet
        file.write(b"".join(a_rollout(7)))
    assert store.ingest() == IngestReport(spans=5, records=6, segments=1)
    monkeypatch.setattr(segments, "QUIET_SECONDS", 0.0)
    store.ingest()
    assert list(segment.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("process", "is_taken_at_once"),
    [
        pytest.param(lambda: replace(this_process(), space="1"), False, id="another container"),
        pytest.param(lambda: replace(this_process(), boot="11111111"), False, id="a copy of this machine"),
        pytest.param(lambda: replace(this_process(), host="00000000"), False, id="this process by another name"),
        pytest.param(lambda: replace(gone_process(), space="1"), False, id="a container that is gone"),
        pytest.param(gone_process, True, id="gone"),
        pytest.param(lambda: replace(this_process(), started="1"), True, id="its number is another's by now"),
    ],
)
def test_a_process_is_gone_only_where_that_is_certain(path, process, is_taken_at_once):
    """A number alone says nothing: not in another container, after another boot, or of a later process."""
    segment, store = begun(path, process()), Store(path)
    assert status_of(store) == ("interrupted" if is_taken_at_once else None)
    assert segment.exists() is not is_taken_at_once


def test_a_segment_from_before_this_boot_is_taken_at_once(path, monkeypatch):
    """The same machine, started anew since the segment last changed, runs none of its processes any more."""
    segment, store = begun(path, replace(this_process(), boot="11111111")), Store(path)
    monkeypatch.setattr("tracetune.tracer.processes._booted_at", lambda: time.time() + 60)
    assert status_of(store) == "interrupted"
    assert not segment.exists()


def test_a_process_that_has_ended_and_is_not_waited_for_is_gone(path):
    """Its parent may never ask for it."""
    child = os.fork()
    if child == 0:
        os.execvp("sleep", ["sleep", "0.01"])
    try:
        deadline = time.monotonic() + 60
        process = replace(this_process(), pid=child, started=started_at(child))
        while process.runs and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.runs is False
    finally:
        os.waitpid(child, 0)


def started_at(pid: int) -> str:
    """When a process began, as its identity has it."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_segment_of_an_older_version_is_left_until_it_is_quiet(path, monkeypatch):
    """Its name does not say where its process was."""
    segment = write_segment(path, "20260101T000000.000000Z-1-00000000.open", *a_rollout())
    store = Store(path)
    assert store.sql("SELECT count(*) AS n FROM spans").rows() == [{"n": 5}]
    assert segment.exists()
    for _ in range(2):
        monkeypatch.setattr(segments, "QUIET_SECONDS", 0.0)
        store.ingest()
    assert list(segment.parent.iterdir()) == []


def test_a_segment_that_grew_since_it_was_read_is_kept(path, monkeypatch):
    """Whatever its writer was taken for: what came after the last look is read next time."""
    segment = write_segment(path, "20260101T000000.000000Z-1-00000000", *a_rollout(1))
    release = segments.release

    def grown(found: segments.Segment) -> None:
        monkeypatch.undo()
        with segment.open("ab") as file:
            file.write(b"".join(a_rollout(2)))
        release(found)

    monkeypatch.setattr(segments, "release", grown)
    store = Store(path)
    store.ingest()
    assert segment.exists()
    assert store.sql("SELECT count(*) AS n FROM spans").rows() == [{"n": 10}]
    assert not segment.exists()


def test_a_writer_whose_segment_was_taken_begins_another(path):
    """What it wrote since the name was last there is in both, and in the store once."""
    spool = Spool(spool_folder(path))
    spool.write_record(names.RECORD_JOB, {"job_id": "1"})
    (segment,) = spool.folder.iterdir()
    taken = segment.rename(segment.with_name(segment.name.replace(".open.", ".taken.")))
    spool.write_record(names.RECORD_JOB, {"job_id": "2"})
    spool.flush()
    (another,) = {*spool.folder.iterdir()} - {taken}
    assert another.read_bytes() == taken.read_bytes()
    taken.unlink()
    taken.with_name(taken.name.replace(".taken.", ".")).write_bytes(another.read_bytes())
    spool.write_record(names.RECORD_JOB, {"job_id": "3"})
    spool.close()
    jobs = Store(path).sql("SELECT job_id FROM jobs ORDER BY ALL").rows()
    assert [row["job_id"] for row in jobs] == ["1", "2", "3"]


def test_a_segment_that_is_taken_while_it_is_closed_loses_nothing(path, monkeypatch):
    """Between the last look and the renaming another may have been quicker."""
    spool = Spool(spool_folder(path))
    spool.write_record(names.RECORD_JOB, {"job_id": "1"})
    (segment,) = spool.folder.iterdir()
    taken = segment.with_name(segment.name.replace(".open.", ".taken."))
    monkeypatch.setattr(os, "fsync", lambda descriptor: segment.rename(taken) if segment.exists() else None)
    spool.close()
    monkeypatch.undo()
    assert list(spool.folder.iterdir()) == [taken]
    assert Store(path).sql("SELECT job_id FROM jobs").rows() == [{"job_id": "1"}]
    assert spool.counts.lost == 0


def test_threads_that_fill_segments_are_never_without_an_open_one(path):
    """A reader elsewhere knows by it that the process lives."""
    spool, is_over = Spool(spool_folder(path), segment_bytes=200), threading.Event()
    spool.write_record(names.RECORD_JOB, {"job_id": "first"})

    def write() -> None:
        for number in range(500):
            spool.write_record(names.RECORD_JOB, {"job_id": str(number)})
        is_over.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    while not is_over.is_set():
        seen.append(any(found.has_writer for found in segments.segments(spool.folder)))
    writer.join()
    spool.close()
    assert all(seen)
