"""The command line: whole outputs, exit codes, and one sentence for what is refused."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow.parquet
import pytest
from cli.conftest import Finished

from tracetune.cli import main

SPREAD = "SELECT module, invocation, count(*), avg(reward_std) FROM groups GROUP BY ALL ORDER BY ALL"
COMPLETION = "SELECT completion FROM calls WHERE rollout_id = 'r0' AND module = 'plan'"
OVERVIEW = """\
rollouts
run    split  program  steps  rollouts  ok  error  format_error  timeout  interrupted  superseded  unscored    reward
-----  -----  -------  -----  --------  --  -----  ------------  -------  -----------  ----------  --------  --------
try-1  train  agent        1         3   3      0             0        0            0           0         0  0.666667

calls
run    split  module  calls  invocations  exact  not_exact  failed
-----  -----  ------  -----  -----------  -----  ---------  ------
try-1  train  act         6            3      0          6       0
try-1  train  plan        3            1      0          3       0

scores
name    source  scores      mean
------  ------  ------  --------
reward  user         3  0.666667

batches
run  batches  steps  members
---  -------  -----  -------

lines of the spool
spans  records  rejected  repeated  conflicting
-----  -------  --------  --------  -----------
   21        9         0         0            0
"""


def refusal(done: Finished) -> str:
    """What a refused command said: one line, no traceback, nothing on stdout."""
    assert (done.status, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", ["demo", "show", "sql", "groups", "lint", "serve", "import", "export"])
def test_each_command_explains_itself_with_an_example(tracetune, command):
    """`--help` gives the usage and a command that could be typed."""
    done = tracetune(command, "--help")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: tracetune {command} ")
    assert f"\n  Example: tracetune {command}" in done.stdout


def test_sql_prints_a_table(tracetune, store):
    """In a pipe an answer is aligned text; nothing else is said."""
    done = tracetune("sql", store, SPREAD)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == (
        "module  invocation  count_star()  avg(reward_std)\n"
        "------  ----------  ------------  ---------------\n"
        "act              0             1         0.288675\n"
        "act              1             1         0.353553\n"
        "act              2             1             NULL\n"
        "plan             0             1         0.288675\n"
    )


def test_sql_gives_json_csv_and_parquet(tracetune, store, tmp_path):
    """The same rows come in each form; Parquet goes to a file and says so."""
    query = "SELECT rollout_id, n_calls, reward FROM rollouts ORDER BY rollout_id"
    rows = [
        {"rollout_id": "r0", "n_calls": 3, "reward": 0.5},
        {"rollout_id": "r1", "n_calls": 4, "reward": 1.0},
        {"rollout_id": "r2", "n_calls": 2, "reward": 0.5},
    ]
    assert json.loads(tracetune("sql", store, query, "--json").stdout) == rows
    assert tracetune("sql", store, query, "--csv").stdout == "rollout_id,n_calls,reward\nr0,3,0.5\nr1,4,1.0\nr2,2,0.5\n"
    done = tracetune("sql", store, query, "--parquet", "rollouts.parquet")
    assert (done.status, done.stdout, done.stderr) == (0, "", "3 rows are in rollouts.parquet\n")
    assert pyarrow.parquet.read_table(tmp_path / "rollouts.parquet").to_pylist() == rows


def test_a_hostile_completion_in_a_pipe_is_one_printable_line(tracetune, store):
    """Escape sequences, line ends and marks that turn the writing are shown, not obeyed."""
    assert tracetune("sql", store, COMPLETION).stdout.splitlines()[2] == (
        r"\x1b[31m[bold]red[/bold]\x07\nsecond line \u202eturned"
    )


@pytest.mark.parametrize("form", [[], ["--json"], ["--csv"]])
def test_a_hostile_completion_does_not_reach_a_terminal(store, form):
    """On a real terminal no form of an answer lets a completion's control characters through."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("tracetune"), "sql", store, COMPLETION, *form],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb", "COLUMNS": "100"},
    )
    os.close(theirs)
    received = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(4096):
                received += part
        except OSError:
            pass  # how Linux says that the other end was closed
    assert process.wait() == 0
    shown = received.decode().replace("\r\n", "")
    assert "[bold]red[/bold]" in shown
    assert shown.isprintable()


def test_show_gives_an_overview(tracetune, store):
    """Rollouts by status, calls by module, scores, batches and what the spool held, each as a table."""
    done = tracetune("show", store)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == OVERVIEW


def test_groups_are_shown_with_their_spread(tracetune, store):
    """A group is a line: who is compared, how many, how their rewards are spread, and whether it can teach."""
    done = tracetune("groups", store, "--where", "module = 'act' -- the second module")
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == (
        "run    split  step  example_id  module  key  invocation  turn  size  reward_mean  reward_std  constant\n"
        "-----  -----  ----  ----------  ------  ---  ----------  ----  ----  -----------  ----------  --------\n"
        "try-1  train     1  q1          act                   0     0     3     0.666667    0.288675  false\n"
        "try-1  train     1  q1          act                   1     0     2         0.75    0.353553  false\n"
        "try-1  train     1  q1          act                   2     0     1            1        NULL  true\n"
    )


def test_groups_say_when_there_are_more(tracetune, store):
    """A limit is never silent."""
    done = tracetune("groups", store, "--limit", "1")
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "1 of 4 groups are shown; --limit 4 shows them all\n"


def test_a_store_that_is_not_there_is_refused(tracetune, tmp_path):
    """Looking at a store never makes one."""
    for arguments in (["sql", "none.duckdb", "SELECT 1"], ["show", "none.duckdb"], ["groups", "none.duckdb"]):
        assert "none.duckdb" in refusal(tracetune(*arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_a_store_is_refused(tracetune, tmp_path):
    """A text file is named in the refusal, and left as it was."""
    (tmp_path / "notes.txt").write_text("notes")
    assert "notes.txt" in refusal(tracetune("sql", "notes.txt", "SELECT 1"))
    assert (tmp_path / "notes.txt").read_text() == "notes"


@pytest.mark.parametrize(
    "query",
    [
        "SELEC 1",
        "SELECT nothing FROM rollouts",
        "DELETE FROM scores",
        "CREATE TABLE mine (n INT)",
        "COPY calls TO 'calls.csv'",
        "FROM read_csv('/etc/passwd')",
        "",
    ],
)
def test_a_query_that_fails_or_writes_is_refused(tracetune, store, query, tmp_path):
    """Bad SQL and SQL that would change the store or touch other files give one sentence and change nothing."""
    before = store.read_bytes()
    refusal(tracetune("sql", store, query))
    assert (store.read_bytes(), list(tmp_path.iterdir())) == (before, [])


def test_a_bad_condition_is_refused(tracetune, store):
    """`--where` goes to DuckDB, whose reason is given."""
    assert "nothing" in refusal(tracetune("groups", store, "--where", "nothing > 1"))


def test_answers_that_exclude_each_other_are_refused(tracetune, store):
    """One question has one answer."""
    assert refusal(tracetune("sql", store, "SELECT 1", "--json", "--csv")) == (
        "error: --json, --csv and --parquet are three answers to one question; choose one of them"
    )


def test_a_parquet_file_that_cannot_be_written_is_refused(tracetune, store, tmp_path):
    """Neither a folder nor the store itself is overwritten."""
    before = store.read_bytes()
    assert str(tmp_path) in refusal(tracetune("sql", store, "SELECT 1", "--parquet", tmp_path))
    assert "is the store itself" in refusal(tracetune("sql", store, "SELECT 1", "--parquet", store))
    assert store.read_bytes() == before


def test_export_writes_parquet_files(tracetune, store):
    """A folder for each view, by run and day; how much is there is said."""
    done = tracetune("export", store, "--parquet", "out", "--where", "reward > 0.75")
    assert (done.status, done.stdout) == (0, "")
    assert done.stderr == "out: 1 rollouts, 4 calls, 9 spans, 1 scores\n"
    assert sorted(path.name for path in Path("out").iterdir()) == ["calls", "rollouts", "scores", "spans"]
    again = tracetune("export", store, "--parquet", "out")
    assert (again.status, again.stdout) == (1, "")
    assert "out is not an empty folder" in again.stderr


@pytest.mark.parametrize("places", [[], ["--parquet", "out", "--otlp", "http://127.0.0.1:1"]])
def test_export_wants_one_place(tracetune, store, places):
    """Neither and both are refused, and nothing is written."""
    done = tracetune("export", store, *places)
    assert (done.status, done.stdout) == (1, "")
    assert "either --otlp URL, --parquet FOLDER or --format NAME" in done.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["sql", "traces.duckdb"], "Missing argument 'QUERY'"),
        (["groups", "traces.duckdb", "--limit", "0"], "Invalid value for '--limit'"),
        (["demo", "--steps", "many"], "Invalid value for '--steps'"),
        (["show", "traces.duckdb", "--loud"], "No such option: --loud"),
        (["shwo"], "No such command 'shwo'"),
    ],
)
def test_a_command_line_that_cannot_be_read_has_status_2(tracetune, arguments, complaint):
    """What is wrong with it stands on stderr."""
    done = tracetune(*arguments)
    assert (done.status, done.stdout) == (2, "")
    assert complaint in done.stderr


def test_a_reader_that_leaves_early_is_no_error(store):
    """`| head` ends the output, without a traceback."""
    command = Path(sys.executable).with_name("tracetune")
    done = subprocess.run(
        ["bash", "-c", f'"{command}" sql "{store}" "SELECT * FROM range(100000)" --json | head -n 1'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ('[{"range": 0},\n', "")


def test_data_is_utf_8_in_any_locale(store):
    """A pipe of a poorer encoding gets every character all the same."""
    done = subprocess.run(
        [Path(sys.executable).with_name("tracetune"), "sql", store, "SELECT 'né' AS name", "--json"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == '[{"name": "né"}]\n'.encode()


def test_the_demo_is_given_what_was_asked_for(monkeypatch):
    """Options reach the demo as values; what was not given is the demo's own choice."""
    asked = []
    command = ModuleType("tracetune.demo.command")
    command.STEPS = 80
    command.run_demo = lambda **options: asked.append(options)
    monkeypatch.setitem(sys.modules, command.__name__, command)
    for arguments in (["demo"], ["demo", "--model", "m", "--seed", "7", "--steps", "3", "--resume", "--store", "a.db"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    assert asked == [
        {"model": None, "seed": 0, "steps": 80, "resume": False, "store": Path("demo.duckdb")},
        {"model": "m", "seed": 7, "steps": 3, "resume": True, "store": Path("a.db")},
    ]


def test_a_demo_without_its_libraries_says_what_to_install():
    """On a bare installation the demo names the package that is missing and the extra that brings it."""
    code = "import sys; sys.modules['torch'] = None; from tracetune.cli import main; main(['demo'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert refusal(Finished(done.returncode, done.stdout, done.stderr)) == (
        "error: the demo needs the package torch, which is not installed; pip install 'tracetune[local]'"
    )
