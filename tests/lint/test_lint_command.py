"""`tracetune lint`: whole outputs, and the words of docs/lint.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tracetune import Store
from tracetune.grouping import FINDINGS

TABLES = """\
calls
run    module  calls  trainable  unscored  constant
-----  ------  -----  ---------  --------  --------
try-1  act         2          2         0         0
try-1  plan        5          0         3         2

trainable, but
run    module  not_exact  not_everywhere
-----  ------  ---------  --------------
try-1  act             2               3
try-1  plan            0               2

the store
finding   count
--------  -----
no_calls      1
"""
WORDS = """\
unscored: its rollout has no reward; call tt.reward in the rollout, or Store.reward later
constant: all rewards of its group are equal; more rollouts an example, a higher temperature, a finer reward, or \
examples neither always nor never solved
not_exact: its tokens are not known, so its text would be tokenised anew; sample from tracetune's endpoint, which \
records the exact tokens
not_everywhere: rollouts of the same program that never called the module; nothing under missing="keep"; "strict" \
leaves the module out for their examples
no_calls: rollouts that made no call; instrument the client (tt.instrument), or report its calls with tt.record_call
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The path of a store with trainable, constant and unscored calls, not to be changed."""
    path = tmp_path_factory.mktemp("linted") / "traces.duckdb"
    plan, act = {"module": "plan", "completion": "p"}, {"module": "act", "completion": "a"}
    Store(path).add_rollouts(
        {"run": "try-1", "example_id": example, "index": index, "reward": reward, "calls": calls}
        for example, index, reward, calls in [
            ("q1", 0, 0.0, [act]),
            ("q1", 1, 1.0, [act]),
            ("q2", 0, 1.0, [plan]),
            ("q2", 1, 1.0, [plan]),
            ("q3", 0, None, [plan, plan, plan]),
            ("q3", 1, 1.0, []),
        ]
    )
    return path


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """How `tracetune` with those arguments ends: its status, its data and its words."""
    command = [Path(sys.executable).with_name("tracetune"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_lint_prints_tables_and_says_what_to_do(store):
    """Data goes to stdout, one line for each finding to stderr, and findings are no failure."""
    assert run("lint", store) == (0, TABLES, WORDS)


def test_lint_as_json_is_the_rows_of_the_report(store):
    """One object a number, with what to do; the condition narrows them."""
    status, data, words = run("lint", store, "--json", "--where", "module = 'act'")
    assert (status, words) == (0, "")
    assert json.loads(data) == Store(store).lint(where="module = 'act'").rows()


def test_lint_of_an_empty_store_is_an_empty_table(tmp_path):
    """There is nothing to find, and nothing to say."""
    Store(tmp_path / "traces.duckdb")
    assert run("lint", tmp_path / "traces.duckdb") == (
        0,
        "calls\nrun  module  calls  trainable\n---  ------  -----  ---------\n",
        "",
    )
    assert run("lint", tmp_path / "traces.duckdb", "--json") == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none.duckdb"], "there is no store at none.duckdb; record into it first, or give another path"),
        (["STORE", "--where", "nothing = 1"], 'column "nothing" not found'),
        (["STORE", "--where", "true); SELECT (1"], "is not one condition over calls: the query has 2 statements"),
    ],
)
def test_lint_refuses_in_one_sentence(store, arguments, complaint):
    """No traceback, nothing on stdout, exit status 1."""
    status, data, words = run("lint", *(store if argument == "STORE" else argument for argument in arguments))
    [line] = words.splitlines()
    assert (status, data) == (1, "")
    assert line.startswith("error: ")
    assert complaint in line


def test_the_documented_findings_are_those_of_the_code(repository):
    """docs/lint.md has every finding, in order, under its heading, in the words that the command prints."""
    text = (repository / "docs" / "lint.md").read_text(encoding="utf-8")
    headings = {
        "left_out": "## Why a call is left out",
        "note": "## What is worth knowing of trainable calls",
        "store": "## What leads nowhere",
    }
    for kind, heading in headings.items():
        section = text.split(heading)[1].split("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", section, flags=re.MULTILINE) == [
            (name, finding.meaning, finding.remedy) for name, finding in FINDINGS.items() if finding.kind == kind
        ]


def test_the_reasons_are_those_that_grouping_has(repository):
    """docs/grouping.md lists the reasons of calls in the same order."""
    text = (repository / "docs" / "grouping.md").read_text(encoding="utf-8")
    section = text.split("## What is left out, and why")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \| call\b", section, flags=re.MULTILINE) == [
        name for name, finding in FINDINGS.items() if finding.kind == "left_out"
    ]
