"""Programs and rewards in processes of their own: what no thread survives ends one rollout."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import isolated_programs
import pytest
from watched_run import POLICY, Watching

import tracetune as tt
from tracetune.errors import InvalidInput, IsolationError
from tracetune.online.batches import Failures, RolloutRequest, RolloutWarning
from tracetune.online.runner import RolloutRunner
from tracetune.tracer import recording
from tracetune.types import Example, Rollout

# Long beside what a call takes; what hangs is waited for as long as this.
TIMEOUT = 10.0


def run(
    folder: Path, program: Any, reward: Any, words: Sequence[str], isolate: Sequence[str], **settings: Any
) -> tuple[list[Rollout], Failures]:
    """The rollouts of a program on some words, each an example, and their failures."""
    with recording(folder / "a.duckdb", run="run-1", **settings):
        runner = RolloutRunner(program, reward, max_concurrency=4, timeout=TIMEOUT, isolate=isolate)
        try:
            return runner.run([RolloutRequest(Example(word, {"word": word}), 0, "train", 1, POLICY) for word in words])
        finally:
            runner.close()


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """The answer to a query, as plain tuples."""
    return [tuple(row.values()) for row in tt.Store(folder / "a.duckdb").sql(query).rows()]


@pytest.mark.parametrize(
    ("program", "output"),
    [
        (isolated_programs.program, "ANT"),
        (isolated_programs.async_program, "ANT"),
        (isolated_programs.generator, ["A", "N", "T"]),
        (isolated_programs.async_generator, ["A", "N", "T"]),
        (isolated_programs.undecorated, "ANT"),
    ],
)
def test_every_kind_of_program_runs_in_a_process(tmp_path: Path, program: Any, output: Any):
    """Its output comes back, and its spans and calls stand in the same rollout, under its example, step and policy."""
    (rollout,), failures = run(tmp_path, program, isolated_programs.async_reward, ["ant"], ["program", "reward"])
    assert (rollout.output, rollout.reward, rollout.status) == (output, 3.0, "ok")
    assert (rollout.run, rollout.split, rollout.step, rollout.example_id) == ("run-1", "train", 1, "ant")
    assert "".join(call.completion for call in rollout.calls) == "ANT"
    assert {call.module for call in rollout.calls} == {"say"}
    assert (failures.programs, failures.rewards) == (0, 0)
    assert rows(tmp_path, "SELECT rollout_id, status, reward, n_calls, step, policy_version FROM rollouts") == [
        (rollout.id, "ok", 3.0, len(rollout.calls), 1, "run-1@0")
    ]


def test_a_reward_in_a_process_scores_the_same_rollout(tmp_path: Path):
    """Its score comes back with its feedback, and its own calls are scores of the rollout, in the program's trace."""
    for isolate in (["reward"], ["program", "reward"]):
        folder = tmp_path / isolate[0]
        folder.mkdir()
        (rollout,), _ = run(folder, isolated_programs.program, isolated_programs.reward, ["ant"], isolate)
        assert (rollout.output, rollout.reward) == ("ANT", 3.0)
        ((feedback,),) = rows(folder, "SELECT feedback FROM scores")
        assert feedback not in ("", f"in {os.getpid()}")
        assert rows(folder, "SELECT kind, rollout_id, completion FROM calls ORDER BY kind") == [
            ("call", rollout.id, "ANT"),
            ("score", rollout.id, "good"),
        ]
        assert rows(folder, "SELECT count(*), count(DISTINCT trace_id) FROM spans") == [(4, 1)]


def test_processes_are_used_again(tmp_path: Path):
    """One process runs one rollout after another, and it is not this one."""
    rollouts, _ = run(tmp_path, isolated_programs.process, isolated_programs.one, ["a", "b"] * 4, ["program"])
    processes = {rollout.output for rollout in rollouts}
    assert os.getpid() not in processes
    assert 1 <= len(processes) <= 4


HOSTILE = {
    "regex": ("timeout", None, "no end after 10 s"),
    "sleep": ("timeout", None, "no end after 10 s"),
    "exit": ("error", "tracetune.errors.IsolationError", "ended with exit code 3; no other rollout"),
    "segfault": ("error", "tracetune.errors.IsolationError", r"was ended by signal 11 \(SIGSEGV\)"),
    "killed": ("error", "tracetune.errors.IsolationError", r"was ended by signal 9 \(SIGKILL\)"),
    "sys.exit": ("error", "SystemExit", "^4$"),
    "interrupt": ("error", "KeyboardInterrupt", ""),
    "error": ("error", "LookupError", "no such word"),
    "unpicklable error": ("error", "isolated_programs.Unpicklable", "1 and 2"),
    "unpicklable": ("error", None, "pickle"),
    "format": ("format_error", "tracetune.errors.FormatError", "no word"),
}


def test_what_ends_a_process_ends_one_rollout(tmp_path: Path):
    """Regular expressions without end, exits, signals and errors fail their own rollout; the store says so too."""
    words = ["ant", *HOSTILE, "bee"]
    started = time.monotonic()
    rollouts, failures = run(tmp_path, isolated_programs.program, isolated_programs.one, words, ["program"])
    assert time.monotonic() - started < 120
    assert failures.programs == len(HOSTILE)
    found = {rollout.example_id: (rollout.status, rollout.error_type, rollout.reward) for rollout in rollouts}
    assert found.pop("ant") == found.pop("bee") == ("ok", None, 1.0)
    unpicklable = found.pop("unpicklable")
    assert unpicklable[0] == "error"
    assert found == {word: (*HOSTILE[word][:2], None) for word in HOSTILE if word != "unpicklable"}
    stored = dict(rows(tmp_path, "SELECT example_id, status FROM rollouts"))
    assert stored == {"ant": "ok", "bee": "ok", **{word: HOSTILE[word][0] for word in HOSTILE}}
    # What was recorded before the end is kept.
    assert rows(tmp_path, "SELECT count(*) FROM calls WHERE module = 'say'") == [(len(words),)]


@pytest.mark.parametrize("word", [word for word in HOSTILE if HOSTILE[word][0] != "timeout"])
def test_an_error_in_a_process_says_what_it_was(tmp_path: Path, word: str):
    """The message of a failure names the exit code or the signal, or is the exception's own."""
    _, failures = run(tmp_path, isolated_programs.program, isolated_programs.one, [word], ["program"])
    assert re.search(HOSTILE[word][2], failures.program_message), failures.program_message


def test_what_ends_a_rewards_process_leaves_one_rollout_unscored(tmp_path: Path):
    """The program's result stands, the reward's failure is counted, and the others are scored."""
    words = ["ant", "regex", "exit", "interrupt", "error", "bee"]
    rollouts, failures = run(tmp_path, isolated_programs.undecorated, isolated_programs.reward, words, ["reward"])
    assert [(rollout.status, rollout.reward) for rollout in rollouts] == [
        ("ok", 3.0),
        *[("ok", None)] * 4,
        ("ok", 3.0),
    ]
    assert (failures.programs, failures.rewards) == (0, 4)


def test_what_is_recorded_in_a_process_is_redacted(tmp_path: Path):
    """The recording's redaction hook is the process's too."""
    run(
        tmp_path,
        isolated_programs.program,
        isolated_programs.one,
        ["secret"],
        ["program"],
        redact=isolated_programs.redact,
    )
    assert rows(tmp_path, "SELECT input->>'word' FROM rollouts") == [("***",)]


def test_what_cannot_be_found_by_name_is_refused(tmp_path: Path):
    """A function that another process cannot import is refused before anything is recorded, in one sentence."""

    def local(word: str) -> str:
        return word

    store = tmp_path / "a.duckdb"
    for program in (local, lambda word: word, isolated_programs.Unpicklable(1, 2).with_traceback):
        with pytest.raises(InvalidInput, match=r"the program .* cannot be isolated, because .* make it a function at"):
            tt.optimize(program, [{"word": "a"}], isolated_programs.one, Watching(), store=store, isolate="program")
    with pytest.raises(InvalidInput, match='isolate takes "program", "reward" or both, not \'trainer\''):
        tt.optimize(
            isolated_programs.program, [{"word": "a"}], isolated_programs.one, Watching(), store=store,
            isolate=("trainer",),  # type: ignore[arg-type]
        )  # fmt: skip
    with pytest.raises(InvalidInput, match=r"the redact function .* cannot be isolated"):
        run(tmp_path, isolated_programs.program, isolated_programs.one, ["a"], ["program"], redact=lambda text: text)


def test_a_function_that_cannot_be_imported_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module that raises in the other process fails the rollouts with its own error."""
    monkeypatch.setattr(isolated_programs.one, "__module__", "isolated_programs_2")
    monkeypatch.setitem(sys.modules, "isolated_programs_2", isolated_programs)
    (rollout,), failures = run(tmp_path, isolated_programs.program, isolated_programs.one, ["ant"], ["reward"])
    assert (rollout.status, rollout.reward, failures.rewards) == ("ok", None, 1)
    assert isinstance(failures.first_reward, IsolationError)
    assert "could not import it (ModuleNotFoundError: No module named 'isolated_programs_2')" in failures.reward_message


@pytest.mark.parametrize(
    ("kind", "program", "reward", "found", "failed"),
    [
        (
            "program",
            isolated_programs.program,
            isolated_programs.one,
            [("ant", "ok", 2, 2), ("exit", "error", 2, 0), ("regex", "timeout", 2, 0)],
            [2.0, 2.0],
        ),
        (
            "reward",
            isolated_programs.undecorated,
            isolated_programs.reward,
            [("ant", "ok", 2, 2), ("exit", "ok", 2, 0), ("regex", "ok", 2, 0)],
            [0.0, 0.0],
        ),
    ],
    ids=["program", "reward"],
)
def test_a_whole_run_survives(
    tmp_path: Path, kind: Any, program: Any, reward: Any, found: list[tuple[Any, ...]], failed: list[float]
):
    """A run whose program or reward exits, or never lets go of the interpreter, goes on to its last step."""
    figures: list[float] = []
    with pytest.warns(RolloutWarning, match=r"rollouts (failed|could not be scored)"):
        result = tt.optimize(
            program,
            [{"id": word, "inputs": {"word": word}} for word in ("ant", "exit", "regex")],
            reward,
            Watching(),
            store=tmp_path / "a.duckdb", steps=2, examples_per_step=3, rollouts=1, timeout=TIMEOUT, isolate=kind,
            progress=False, on_step=lambda step, told: figures.append(told["failed"]),
        )  # fmt: skip
    assert (len(result.reports), figures) == (2, failed)
    counted = "SELECT example_id, status, count(*), count(reward) FROM rollouts GROUP BY ALL ORDER BY ALL"
    assert rows(tmp_path, counted) == found
