"""Many processes and threads at one store: each line comes in once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from store.spool_lines import a_rollout, tables_of, write_segment

from tracetune.grouping import Store
from tracetune.tracer import names
from tracetune.tracer.spool import Spool

INGEST = """
import sys
from tracetune.grouping import Store
store = Store(sys.argv[1], wait=60)
print("ready", flush=True)
sys.stdin.readline()
report = store.ingest()
print(report.spans, report.records, report.repeated, flush=True)
"""

KILLED = """
import os, signal, sys
from tracetune.grouping import Store
from tracetune.grouping.ingest import segments
segments.release = lambda segment: os.kill(os.getpid(), signal.SIGKILL)
Store(sys.argv[1]).ingest()
"""


def test_two_processes_that_ingest_at_once_share_the_work(tmp_path):
    """Both wait their turn, and together take in every line once."""
    path = tmp_path / "traces.duckdb"
    Store(path)
    for number in range(4):
        write_segment(path, f"{number}-1-a", *a_rollout(number))
    processes = [
        subprocess.Popen([sys.executable, "-c", INGEST, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n", "ready\n"]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    reports = [tuple(map(int, process.communicate()[0].split())) for process in processes]
    assert tuple(map(sum, zip(*reports, strict=True))) == (20, 24, 0)
    assert Store(path).sql("SELECT count(*) AS n FROM spans").rows() == [{"n": 20}]


def test_a_process_killed_after_its_commit_leaves_nothing_to_repeat(tmp_path):
    """After kill -9 before the segment is removed, the next ingest removes it and adds nothing."""
    path, expected = tmp_path / "traces.duckdb", tmp_path / "expected.duckdb"
    for store in (path, expected):
        write_segment(store, "1-1-a", *a_rollout())
    Store(expected).ingest()
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == -signal.SIGKILL
    assert len(os.listdir(path.with_name(path.name + ".spool"))) == 1
    Store(path).ingest()
    assert tables_of(path) == tables_of(expected)
    assert os.listdir(path.with_name(path.name + ".spool")) == []


def test_threads_that_query_and_score_take_turns(tmp_path):
    """Threads of one process use one store at once, and no score is lost."""
    path = tmp_path / "traces.duckdb"
    write_segment(path, "1-1-a", *a_rollout(), *a_rollout(1))
    store, failures = Store(path), []

    def score(rollout_id):
        try:
            store.reward(rollout_id, 1.0)
            store.sql("SELECT count(*) FROM groups")
        except Exception as error:  # noqa: BLE001  a thread's failure is the test's
            failures.append(error)

    threads = [threading.Thread(target=score, args=[f"r{number % 2}"]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.sql("SELECT rollout_id, count(*) AS n FROM scores GROUP BY ALL ORDER BY ALL").rows() == [
        {"rollout_id": "r0", "n": 3},
        {"rollout_id": "r1", "n": 3},
    ]


def test_an_ingest_while_others_write_loses_nothing(tmp_path):
    """Lines written while segments are read come in with the next ingest, each once."""
    path = tmp_path / "traces.duckdb"
    store = Store(path)
    spool = Spool(path.with_name(path.name + ".spool"), segment_bytes=4_000)

    def write():
        for number in range(300):
            spool.write_record(names.RECORD_JOB, {"job_id": str(number)})
        spool.close()

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        store.ingest()
    counts = store.sql("SELECT count(*) AS n, count(DISTINCT job_id) AS jobs FROM jobs").rows()
    assert counts == [{"n": 300, "jobs": 300}]
    assert store.sql("SELECT sum(rejected + repeated + conflicting) AS n FROM segments").rows() == [{"n": 0}]
