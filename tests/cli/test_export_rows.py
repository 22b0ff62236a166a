"""`tracetune export --format`: rows to fine-tune with, and a word on what is not in them."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest

from tracetune import Grouping, Store
from tracetune.rows import group_table

DEMO = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def prompt(question: str) -> list[dict[str, str]]:
    """A question, with a demo in front."""
    return [*DEMO, {"role": "user", "content": question}]


def said(text: str) -> dict[str, str]:
    """What the assistant said."""
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> Path:
    """A store: four answers to one question, two to another, and one rollout without a score."""
    path = tmp_path_factory.mktemp("answers") / "traces.duckdb"
    given = [
        ("q1", "4", 1.0),
        ("q1", "5", 0.0),
        ("q1", "vier", 0.5),
        ("q1", "4", 1.0),
        ("q2", "6", 0.0),
        ("q2", "7", 0.0),
    ]
    calls = {"prompt_token_ids": [1], "completion_token_ids": [2], "completion_logprobs": [-0.5]}
    Store(path).add_rollouts(
        [
            {
                "example_id": example,
                "run": "try-1",
                "index": index,
                "reward": reward,
                "calls": [{"module": "answer", "messages": prompt(example), "completion": text, **calls}],
            }
            for index, (example, text, reward) in enumerate([*given, ("q1", "?", None)])
        ]
    )
    return path


GROUPS = "left out of the groups: 2 calls constant, 1 calls unscored, 1 groups constant, 1 rollouts unscored\n"


@pytest.mark.parametrize(
    ("options", "rows", "words"),
    [
        (
            ["sft"],
            [{"messages": [*prompt("q1"), said("4")]}],
            "1 rows of 4 calls in 1 groups\nleft out of the rows: 3 not_best\n",
        ),
        (
            ["sft", "--above", "-0.5"],
            [{"messages": [*prompt("q1"), said("4")]}, {"messages": [*prompt("q1"), said("vier")]}],
            "2 rows of 4 calls in 1 groups\nleft out of the rows: 1 duplicate, 1 not_above\n",
        ),
        (
            ["dpo", "--margin", "1"],
            [
                {
                    "input": {"messages": prompt("q1")},
                    "preferred_output": [said("4")],
                    "non_preferred_output": [said("5")],
                }
            ],
            "1 rows of 4 calls in 1 groups\nleft out of the rows: 1 duplicate, 1 odd\n",
        ),
        (
            ["kto"],
            [
                {"prompt": prompt("q1"), "completion": [said("4")], "label": True},
                {"prompt": prompt("q1"), "completion": [said("5")], "label": False},
                {"prompt": prompt("q1"), "completion": [said("vier")], "label": False},
            ],
            "3 rows of 4 calls in 1 groups\nleft out of the rows: 1 duplicate\n",
        ),
    ],
    ids=["sft", "sft above", "dpo", "kto"],
)
def test_rows_go_to_standard_output_or_a_file(tracetune, answers, options, rows, words):
    """Rows are one JSON object a line, the same in a file; what is in none is said on standard error."""
    done = tracetune("export", answers, "--format", *options)
    assert done.status == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == rows
    assert done.stderr == words + GROUPS
    again = tracetune("export", answers, "--format", *options, "-o", "rows.jsonl")
    assert (again.stdout, Path("rows.jsonl").read_text(encoding="utf-8")) == ("", done.stdout)


def test_groups_are_exported_with_their_tokens(tracetune, answers):
    """The Parquet file is the table of the groups that `Store.groups` gives for the same condition."""
    done = tracetune("export", answers, "--format", "parquet", "-o", "groups.parquet", "--where", "example_id = 'q1'")
    assert (done.status, done.stdout) == (0, "")
    left_out = "left out of the groups: 1 calls unscored, 1 rollouts unscored\n"
    assert done.stderr == f"4 rows of 4 calls in 1 groups\n{left_out}"
    batch = Store(answers).groups(Grouping(), "example_id = 'q1'")
    assert pyarrow.parquet.read_table("groups.parquet") == group_table(batch)


def test_a_folder_for_datasets_is_read_by_datasets(tracetune, answers, tmp_path):
    """Each kind of row is a configuration of one data set, read by `load_dataset` as it was written."""
    done = tracetune("export", answers, "--format", "hf", "-o", "rows")
    assert (done.status, done.stdout) == (0, "")
    assert done.stderr == (
        "sft: 1 rows of 4 calls in 1 groups\nleft out of sft: 3 not_best\n"
        "dpo: 1 rows of 4 calls in 1 groups\nleft out of dpo: 1 duplicate, 1 odd\n"
        "kto: 3 rows of 4 calls in 1 groups\nleft out of kto: 1 duplicate\n" + GROUPS
    )
    cache = str(tmp_path / "cache")
    loaded = {
        name: datasets.load_dataset("rows", name, split="train", cache_dir=cache).to_list()
        for name in datasets.get_dataset_config_names("rows")
    }
    assert sorted(loaded) == ["dpo", "groups", "kto", "sft"]
    assert loaded["sft"] == [{"messages": [*prompt("q1"), said("4")]}]
    assert loaded["dpo"] == [{"prompt": prompt("q1"), "chosen": [said("4")], "rejected": [said("5")]}]
    assert [row["label"] for row in loaded["kto"]] == [True, False, False]
    assert [row["completion_token_ids"] for row in loaded["groups"]] == [[2]] * 4


def test_a_store_without_groups_gives_no_rows(tracetune, answers):
    """Nothing to export is no failure: the output is empty, and what is missing is said."""
    done = tracetune("export", answers, "--format", "sft", "--where", "module = 'nobody'")
    assert (done.status, done.stdout, done.stderr) == (0, "", "0 rows of 0 calls in 0 groups\n")
    assert tracetune("export", answers, "--format", "hf", "-o", "rows", "--where", "false").status == 0
    assert datasets.get_dataset_config_names("rows") == ["groups"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "csv"], "--format csv is not known; there are sft, dpo, kto, parquet, hf"),
        (["--format", "sft", "--margin", "1"], "--margin means nothing to --format sft; leave it out"),
        (["--format", "kto", "--above", "1"], "--above means nothing to --format kto; leave it out"),
        (["--format", "hf"], "--format hf is no text; say where to with -o PATH"),
        (["--format", "parquet"], "--format parquet is no text; say where to with -o PATH"),
        (["--format", "sft", "-o", "missing/rows.jsonl"], "missing/rows.jsonl cannot be written ([Errno 2] No such "),
        (["--format", "hf", "-o", "."], ". is there already; name a folder that is not"),
        (["--parquet", "out", "--above", "1"], "--output, --above and --margin are for rows; name them with --format"),
        (["--format", "sft", "--where", "colour = 1"], "calls could not be grouped with where="),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_exported_is_refused(tracetune, answers, options, message):
    """In one sentence, with status 1, and nothing is written."""
    done = tracetune("export", answers, *options)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert list(Path().iterdir()) == []


def test_the_store_is_not_overwritten(tracetune, answers):
    """Rows that would go where the store is are refused."""
    before = answers.read_bytes()
    for row_format in ("sft", "parquet"):
        done = tracetune("export", answers, "--format", row_format, "-o", answers)
        assert done.stderr == f"error: {answers} is the store itself; name another path\n"
    assert answers.read_bytes() == before
