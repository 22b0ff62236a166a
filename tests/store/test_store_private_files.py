"""Whatever tracetune writes is its owner's alone, whatever the umask; what is there already keeps its mode."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store.spool_lines import a_rollout, write_segment

import tracetune as tt
from tracetune.files import make_folder, write_text
from tracetune.grouping import Store
from tracetune.online.checkpoints import Checkpoints
from tracetune.rows import write_dataset
from tracetune.tracer import Spool, names, spool_folder

LOG_NOTE_BYTES = 100


@pytest.fixture(autouse=True, params=[0o022, 0o000])
def _usual_umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """As most systems have it, and the worst one."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@tt.program
def find(claim: str) -> str:
    """A program with one call."""
    tt.record_call(messages=[{"role": "user", "content": claim}], completion="yes", model="mine")
    return claim


def modes(folder: Path) -> dict[str, int]:
    """The mode of everything below a folder."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def open_to_others(folder: Path) -> dict[str, str]:
    """What below a folder anybody but its owner may use."""
    return {name: oct(mode) for name, mode in modes(folder).items() if mode & 0o077}


def record_something(path: Path, rollouts: int = 2) -> None:
    """Rollouts with a call each."""
    with tt.record(path, run="try-1"):
        for reward in range(rollouts):
            with tt.rollout(example_id="q1"):
                find("water is wet")
                tt.reward(reward)


def test_everything_beside_a_store_is_its_owners_alone(tmp_path):
    """Spool, store, rejected lines, compacted copy, exports and checkpoints; folders above them too."""
    path = tmp_path / "not" / "yet" / "traces.duckdb"
    record_something(path)
    left_open = Spool(spool_folder(path))
    left_open.write_record(names.RECORD_JOB, {"job_id": "1"})
    write_segment(path, "1-1-a", *a_rollout(), b"no JSON\n").chmod(0o600)
    store = Store(path)
    store.ingest()
    assert (spool_folder(path) / "rejected.jsonl").exists()
    store.compact()
    store.export_parquet(tmp_path / "out" / "parquet")
    write_dataset(store.groups(), tmp_path / "dataset")

    class State:
        step = 1

        def save(self, folder: Path) -> None:
            (folder / "inside").mkdir()
            (folder / "inside" / "weights").write_bytes(b"w")

    Checkpoints(path, "run-1").keep(State())
    assert open_to_others(tmp_path) == {}
    left_open.close()


@pytest.mark.parametrize(
    "command",
    [
        ("sql", "{store}", "FROM rollouts", "--parquet", "answer.parquet"),
        ("export", "{store}", "--format", "sft", "-o", "rows.jsonl"),
        ("export", "{store}", "--format", "parquet", "-o", "groups.parquet"),
        ("export", "{store}", "--format", "hf", "-o", "dataset"),
        ("export", "{store}", "--parquet", "views"),
    ],
    ids=lambda command: command[-1],
)
def test_what_commands_write_is_its_owners_alone(tmp_path, command):
    """Rows and answers hold what was recorded."""
    record_something(tmp_path / "traces.duckdb")
    arguments = [argument.format(store="traces.duckdb") for argument in command]
    subprocess.run([sys.executable, "-m", "tracetune.cli", *arguments], cwd=tmp_path, check=True)
    assert (tmp_path / command[-1]).exists()
    assert open_to_others(tmp_path) == {}


def test_nothing_is_open_to_others_for_a_moment(tmp_path):
    """Not while the store is made, while it is written, nor while it is written anew."""
    path, seen, is_over = tmp_path / "traces.duckdb", {}, threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            for place in tmp_path.iterdir():  # what is in a folder of its owner's can't be reached
                try:
                    status = place.stat()
                except FileNotFoundError:
                    continue
                # DuckDB's log may hold its own note of a commit, and nothing of what was committed.
                if status.st_mode & 0o077 and not (place.suffix == ".wal" and status.st_size <= LOG_NOTE_BYTES):
                    seen[place.name] = (oct(status.st_mode), status.st_size)
            time.sleep(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        record_something(path, 20)
        store = Store(path)
        for _ in range(5):
            store.reward(None, 1.0, call_id=store.sql("SELECT call_id FROM calls").rows()[0]["call_id"])
            store.sql("CREATE OR REPLACE TABLE mine AS SELECT range AS n FROM range(1000)", write=True)
        store.compact()
    finally:
        is_over.set()
        watcher.join()
    assert seen == {}


def test_what_does_not_fit_into_memory_is_its_owners_alone(tmp_path):
    """The folder in which DuckDB goes on is there before DuckDB would make it, and is gone after."""
    path, seen, is_over = tmp_path / "traces.duckdb", [], threading.Event()
    store = Store(path, memory_limit="100MB")

    def watch() -> None:
        while not is_over.is_set():
            for file in path.with_name(path.name + ".tmp").glob("*/*"):
                seen.append([stat.S_IMODE(each.stat().st_mode) for each in (file.parent, file.parent.parent)])
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        store.sql("SELECT count(*) FROM (SELECT DISTINCT repeat('x', 20) || range AS s FROM range(2500000))")
    finally:
        is_over.set()
        watcher.join()
    assert seen
    assert {mode for each in seen for mode in each} == {0o700}
    assert os.listdir(tmp_path) == ["traces.duckdb"]


def test_modes_that_a_team_has_given_stay(tmp_path):
    """A store and a spool that a group may write stay so: new segments and the compacted copy too."""
    path = tmp_path / "traces.duckdb"
    record_something(path)
    store = Store(path)
    path.chmod(0o660)
    spool_folder(path).chmod(0o2770)
    write_segment(path, "1-1-a", b"no JSON\n")
    store.ingest()
    store.compact()
    spool = Spool(spool_folder(path))
    spool.write_record(names.RECORD_JOB, {"job_id": "1"})
    [segment] = spool_folder(path).glob("*.open.jsonl")
    assert modes(tmp_path) == {
        "traces.duckdb": 0o660,
        "traces.duckdb.spool": 0o2770,
        f"traces.duckdb.spool/{segment.name}": 0o660,
        "traces.duckdb.spool/rejected.jsonl": 0o660,
    }
    spool.close()


def test_a_file_that_is_there_keeps_its_mode(tmp_path):
    """It is written into; only what is new is made private."""
    file = tmp_path / "rows.jsonl"
    file.touch()
    file.chmod(0o644)
    write_text(file, "a")
    (tmp_path / "folder").mkdir(mode=0o755)
    (tmp_path / "folder").chmod(0o755)
    make_folder(tmp_path / "folder")
    assert modes(tmp_path) == {"rows.jsonl": 0o644, "folder": 0o755}


def test_the_umask_of_the_process_is_never_changed(tmp_path, monkeypatch):
    """Other threads make files of their own."""

    def refuse(mask: int) -> int:
        raise AssertionError("the umask is the whole process's")

    monkeypatch.setattr(os, "umask", refuse)
    record_something(tmp_path / "traces.duckdb")
    store = Store(tmp_path / "traces.duckdb")
    store.compact()
    store.export_parquet(tmp_path / "out")
    monkeypatch.undo()
