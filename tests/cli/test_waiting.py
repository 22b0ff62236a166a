"""A store that another process holds: how long it is waited for, and what is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tracetune.demo import POLICY_FOLDER

HOLD = "import duckdb, sys; held = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def held(store) -> Iterator[subprocess.Popen]:
    """The store, held by a process until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, store]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield holder
        holder.stdin.close()


COMMANDS = [
    ("show", "STORE"),
    ("sql", "STORE", "FROM calls"),
    ("groups", "STORE"),
    ("lint", "STORE"),
    ("train", "STORE", "--model", str(POLICY_FOLDER)),
    ("serve", "STORE", "--port", "0"),
    ("import", "STORE", "STORE"),
    ("export", "STORE", "--parquet", "out"),
    ("export", "STORE", "--format", "sft"),
    ("export", "STORE", "--otlp", "http://127.0.0.1:1"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_waits_as_long_as_it_is_told(tracetune, store, held, command):
    """In vain, it names the holder, the option that it has, and where what is recorded meanwhile is safe."""
    done = tracetune(*(str(store) if word == "STORE" else word for word in command), "--wait", "0")
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {store} is held by process {held.pid} (")
    assert done.stderr.endswith(
        "; wait for it, or pass wait=30 (--wait 30 on the command line): what is recorded meanwhile is safe in "
        "traces.duckdb.spool\n"
    )


def test_a_command_that_waits_is_answered(store, held):
    """It goes on as soon as the other process has let go."""
    command = [sys.executable, "-m", "tracetune.cli", "sql", store, "SELECT 1 AS one", "--csv", "--wait", "120"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        held.stdin.close()
        assert waiting.stdout.read() == "one\n1\n"
