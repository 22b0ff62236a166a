"""Full disks, odd paths and writes that fail: one sentence, nothing lost, nothing half there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tracetune import Store, record
from tracetune.errors import InvalidInput, StoreError
from tracetune.files import written_whole
from tracetune.grouping import connections

FULL = """
import os, resource, signal, sys
from pathlib import Path
import tracetune as tt
from tracetune.online.checkpoints import Checkpoints

class Large:
    step = 1
    def save(self, folder):
        (folder / "weights").write_bytes(bytes(1 << 20))

store, what, limit = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if limit == "file size":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
else:
    with open(store.parent / "fill", "wb", buffering=0) as fill:
        try:
            while True:
                fill.write(bytes(4096))
        except OSError:
            pass
try:
    if what == "record":
        with tt.record(store, run="full") as recording:
            for _ in range(200):
                tt.program(lambda text: text)("x" * 10_000)
        print("recorded", recording.counts.lost > 0)
    elif what == "ingest":
        tt.Store(store).ingest()
    elif what == "compact":
        tt.Store(store).compact()
    elif what == "export":
        tt.Store(store, read_only=True).export_parquet(store.parent / "out")
    elif what == "checkpoint":
        Checkpoints(store, "full").keep(Large())
    elif what == "new":
        tt.Store(store.parent / "new.duckdb")
    else:
        from tracetune.cli import main
        main([argument.replace("STORE", str(store)) for argument in what.split("|")])
except tt.TracetuneError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(params=["file size", "tmpfs"])
def small_disk(request, tmp_path):
    """A folder in which little can be written: by a limit of this process, and on a disk of 4 MB."""
    if request.param == "file size":
        yield tmp_path, "file size"
        return
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here; a limit of the size of files stands in, in the other half")
    try:
        yield tmp_path, "tmpfs"
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def a_store(path: Path) -> Store:
    """One with half a megabyte of text that does not compress."""
    store = Store(path)
    calls = [{"module": "hop", "messages": [], "completion": os.urandom(1500).hex()}]
    store.add_rollouts({"id": f"r{n}", "example_id": "q", "reward": n % 2, "calls": calls} for n in range(150))
    return store


NO_ROOM = r"(No space left on device|File too large)"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("compact", "StoreError: {store} could not be compacted"),
        ("export", "StoreError: {folder}/out cannot be written"),
        ("new", "StoreError: {folder}/new.duckdb cannot be opened as a store"),
        ("checkpoint", "CheckpointError: the checkpoint of step 1 could not be written to"),
        ("record", "recorded True"),
        ("sql|STORE|FROM calls|--parquet|STORE.parquet", "error: {store}.parquet cannot be written"),
        ("export|STORE|--format|parquet|-o|STORE.parquet", "error: {store}.parquet cannot be written"),
        ("export|STORE|--parquet|STORE.out", "error: {store}.out cannot be written"),
        ("import|STORE|STORE.jsonl|--format|openai", "error: "),
    ],
)
def test_a_full_disk_is_said_in_a_sentence(small_disk, what, told):
    """Nothing but that sentence is printed, nothing is half there, and the store holds what it held."""
    folder, limit = small_disk
    path = folder / "traces.duckdb"
    a_store(path)
    line = (
        '{"request": {"model": "m", "messages": [{"role": "user", "content": "%s"}]}, "response": {"id": "c%d", '
        '"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", '
        '"content": "yes"}, "finish_reason": "stop"}]}}\n'
    )
    Path(f"{path}.jsonl").write_text("".join(line % ("x" * 1000, number) for number in range(500)))
    done = subprocess.run([sys.executable, "-c", FULL, path, what, limit], capture_output=True, text=True)
    words = [text for text in (done.stdout + done.stderr).splitlines() if "Warning" not in text and text[:1] != " "]
    assert len(words) == 1, (done.stdout, done.stderr)
    assert words[0].startswith(told.format(store=path, folder=folder))
    left = {each.name for each in folder.iterdir()}
    assert left - {"fill", "traces.duckdb.checkpoints", "traces.duckdb.tmp", "new.duckdb"} == {
        "traces.duckdb", "traces.duckdb.spool", "traces.duckdb.jsonl",
    }  # fmt: skip
    if limit == "tmpfs":
        (folder / "fill").unlink()
    held = "SELECT count(*) AS n FROM calls WHERE rollout_id LIKE 'r%' AND length(rollout_id) < 5"
    assert Store(path).sql(held).rows() == [{"n": 150}]


def test_what_could_not_be_taken_in_waits_in_the_spool(small_disk):
    """With room again it is all there."""
    folder, limit = small_disk
    path, other = folder / "traces.duckdb", folder / "other.duckdb"
    a_store(path)
    store = Store(other)
    with store._spool() as spool:
        from tracetune.grouping.exchange.add_rollouts import write_rollouts

        calls = [{"module": "hop", "messages": [], "completion": os.urandom(500).hex()}]
        write_rollouts(spool, [{"id": f"w{number}", "example_id": "q", "calls": calls} for number in range(100)])
    done = subprocess.run([sys.executable, "-c", FULL, other, "ingest", limit], capture_output=True, text=True)
    assert done.stdout.startswith(f"StoreError: {other} could not take in what was recorded ("), done
    assert (done.stderr, done.stdout.count("\n")) == ("", 1)
    if limit == "tmpfs":
        (folder / "fill").unlink()
    assert Store(other).sql("SELECT count(*) AS n FROM rollouts").rows() == [{"n": 100}]


@pytest.mark.parametrize("sql", ["FROM calls", "SELECT 1"])
@pytest.mark.parametrize("form", ["--csv", "--json", "--table"])
def test_an_output_that_takes_nothing_is_one_line(tmp_path, sql, form):
    """A full disk behind stdout: no traceback, also where it shows only at the end."""
    a_store(tmp_path / "traces.duckdb")
    command = [sys.executable, "-m", "tracetune.cli", "sql", tmp_path / "traces.duckdb", sql]
    command += [] if form == "--table" else [form]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    told = "error: No space left on device; free the disk, or see who may read and write there\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_who_has_read_enough_is_told_nothing(tmp_path):
    """A reader that closes the pipe ends the command without a word."""
    a_store(tmp_path / "traces.duckdb")
    command = [sys.executable, "-m", "tracetune.cli", "sql", tmp_path / "traces.duckdb", "FROM calls", "--csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reading:
        reading.stdout.close()
        assert reading.stderr.read() == ""
    assert reading.returncode == 1


NAMES = ["a*b", "a[b]", "a%20b#c", "a'b\"c", "a\nb", "a\\b", "a;b{c}", "a b", "ä日", "-a", "$HOME", "COPY"]


@pytest.mark.parametrize("name", NAMES)
def test_any_other_character_is_part_of_a_name(tmp_path, name):
    """A store at such a path, in such a folder, is written, read, exported and compacted."""
    folder = tmp_path / name
    folder.mkdir()
    store = a_store(folder / f"{name}.duckdb")
    assert store.sql("SELECT count(*) AS n FROM calls").rows() == [{"n": 150}]
    assert store.export_parquet(folder / f"{name}.out")["calls"] == 150
    store.compact()
    assert Store(store.path, read_only=True).sql("SELECT count(*) AS n FROM calls").rows() == [{"n": 150}]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a?b.duckdb", "has '?' in it"),
        ("a\0b.duckdb", "has '\\x00' in it"),
        (os.fsdecode(b"a\xffb.duckdb"), "is not UTF-8"),
    ],
)
def test_a_path_that_duckdb_cannot_open_is_refused(tmp_path, name, told):
    """In a sentence, before anything is made; a folder to export to likewise."""
    with pytest.raises(InvalidInput, match=rf"^the store's path .* {re.escape(told)}.*; rename it$"):
        Store(f"{tmp_path}/{name}")
    with (
        pytest.raises(InvalidInput, match=rf"^the store's path .* {re.escape(told)}.*; rename it$"),
        record(f"{tmp_path}/{name}"),
    ):
        pass
    with pytest.raises(InvalidInput, match=rf"^the folder .* {re.escape(told)}.*; rename it$"):
        Store(tmp_path / "traces.duckdb").export_parquet(f"{tmp_path}/{name}")
    assert {each.name for each in tmp_path.iterdir()} == {"traces.duckdb"}


def test_a_path_that_the_system_refuses_is_said(tmp_path):
    """Too long a name, and a folder in place of a file."""
    with pytest.raises(StoreError, match=r"cannot be used \(File name too long\); give a shorter path$"):
        Store(tmp_path / ("x" * 300))
    with pytest.raises(StoreError, match=r"is a folder; give the path of a store, which is a file$"):
        Store(tmp_path)


def test_an_export_takes_the_place_of_an_empty_folder(tmp_path):
    """Only whole: the folder keeps its place, and holds the four views and nothing else."""
    store = a_store(tmp_path / "traces.duckdb")
    (tmp_path / "out").mkdir()
    before = (tmp_path / "out").stat().st_ino
    store.export_parquet(tmp_path / "out")
    assert (tmp_path / "out").stat().st_ino == before
    store.export_parquet(tmp_path / "new" / "deep")
    for folder in ("out", "new/deep"):
        assert {each.name for each in (tmp_path / folder).iterdir()} == {"rollouts", "calls", "spans", "scores"}


def test_a_file_that_was_there_stays_where_its_successor_fails(tmp_path):
    """And nothing else is beside it."""
    file = tmp_path / "rows.jsonl"
    file.write_text("old")

    def fail() -> None:
        with written_whole(file) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("rows.jsonl", "old")]


def test_no_bar_is_drawn_while_a_store_is_opened(tmp_path, monkeypatch):
    """DuckDB draws it on stdout, among the data: it is off before the file is attached, however long that takes."""
    states = []

    class Watched:
        def __init__(self, connection):
            self._connection = connection

        def execute(self, query, *arguments):
            if query.startswith("ATTACH"):
                states.append(self._connection.execute("SELECT current_setting('enable_progress_bar')").fetchone())
            return self._connection.execute(query, *arguments)

        def __getattr__(self, name):
            return getattr(self._connection, name)

    connect = connections.duckdb.connect
    monkeypatch.setattr(connections.duckdb, "connect", lambda *names, **options: Watched(connect(*names, **options)))
    with connections.connected(tmp_path / "a.duckdb", read_only=False, closed_off=False, wait=0.0, memory_limit="1GB"):
        assert set(states) == {(False,)}
