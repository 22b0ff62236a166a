"""Every finding, on the smallest rollouts that have it."""

from __future__ import annotations

import duckdb
import pytest
from grouping_tables import Rows
from lint.lint_tables import lint_of
from store.spool_lines import a_rollout, answer, record, span, write_segment

from tracetune.errors import QueryError
from tracetune.grouping import FINDINGS, LintReport, ModuleLint, Store
from tracetune.tracer import names
from tracetune.types import Grouping


def pair(**columns) -> Rows:
    """Two rollouts of one example with different rewards, one exact call each: both can be trained on.

    Args:
        columns: of the first rollout.
    """
    rows = Rows().rollout("r0", columns.pop("reward", 0.0), {"act": ["a0"]}, **columns)
    rows.rollout("r1", 1.0, {"act": ["a1"]})
    for call in rows.calls:
        call.update(exact=True, on_policy=True)
    return rows


def changed(**columns) -> Rows:
    """The pair, with columns of the first call changed."""
    return pair().change("a0", **columns)


def with_silent_third() -> Rows:
    """The pair, and a rollout of the example that called another module twice."""
    return pair().rollout("r2", 0.5, {"plan": ["p0", "p1"]})


LEFT_OUT = {
    "score_call": (changed(kind="score"), Grouping()),
    "other_module": (changed(module="plan"), Grouping(modules=("act",))),
    "no_rollout": (changed(rollout_id="unheard of"), Grouping()),
    "superseded": (pair(superseded=True), Grouping()),
    "interrupted": (pair(status="interrupted"), Grouping()),
    "running": (pair(status=None), Grouping()),
    "late": (changed(late=True), Grouping()),
    "cached": (changed(cached=True), Grouping()),
    "no_completion": (changed(exact=False, completion=None), Grouping()),
    "truncated": (changed(exact=False, truncated=True), Grouping()),
    "redacted": (changed(exact=False, redacted=True), Grouping()),
    "unscored": (pair(reward=None), Grouping()),
    "missing": (with_silent_third().change("a0", module="plan", invocation=2), Grouping(missing="strict")),
    "ragged": (changed(invocation=1), Grouping(ragged="truncate")),
    "not_selected": (pair(), Grouping(size=1, select="first", drop_constant=False)),
    "constant": (pair(reward=1.0), Grouping()),
    "singleton": (changed(invocation=1), Grouping()),
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_a_call_that_is_left_out_has_its_reason(reason):
    """Whatever keeps a call out of all groups is counted under its name, and the counts add up."""
    rows, grouping = LEFT_OUT[reason]
    report = lint_of(rows, grouping)
    assert any(reason in module.left_out for module in report.modules)
    for module in report.modules:
        assert sum(module.left_out.values()) == module.calls - module.trainable


def test_every_reason_is_among_those_cases():
    """A reason that is added has a case here."""
    assert list(LEFT_OUT) == [name for name, finding in FINDINGS.items() if finding.kind == "left_out"]


@pytest.mark.parametrize(
    ("note", "rows"),
    [
        ("not_exact", changed(exact=False, on_policy=False)),
        ("not_on_policy", changed(on_policy=False)),
        ("cut_at_limit", changed(finish_reason="length")),
        ("unparsed", pair(status="format_error")),
        ("failed", pair(status="timeout")),
        ("stale_policy", pair(policy_version="v1").change("a0", policy_version="v2")),
        ("unordered", changed(unordered=True)),
        ("shortened", changed(truncated=True)),
        ("redacted_text", changed(redacted=True)),
    ],
)
def test_a_note_is_of_calls_that_can_be_trained_on(note, rows):
    """One of the two calls has the note, and nothing else is found."""
    assert lint_of(rows).modules == (ModuleLint("try-1", "act", 2, 2, {}, {note: 1}),)


def test_a_module_that_some_rollouts_never_call_is_noted():
    """The note counts rollouts of programs that call the module at all, in the same run."""
    rows = with_silent_third().rollout("of another program", 1.0, {"judge": ["j0"]}, program="other")
    rows.rollout("of another run", 1.0, {"act": ["b0"]}, run="another")
    assert lint_of(rows).modules == (
        ModuleLint("another", "act", 1, 0, {"singleton": 1}, {}),
        ModuleLint("try-1", "act", 2, 2, {}, {"not_everywhere": 1}),
        ModuleLint("try-1", "judge", 1, 0, {"singleton": 1}, {}),
        ModuleLint("try-1", "plan", 2, 0, {"singleton": 2}, {"not_everywhere": 2}),
    )


def test_a_condition_narrows_what_is_looked_at():
    """What it does not select is as if it were not there."""
    assert lint_of(with_silent_third(), where="module = 'plan' AND invocation = 1").modules == (
        ModuleLint("try-1", "plan", 1, 0, {"singleton": 1}, {}),
    )


def test_two_runs_and_calls_outside_of_any_run_stand_apart():
    """Rows are by run and module, runs without a name last."""
    rows = pair(run=None).rollout("r2", 0.5, {"act": ["a2"]}, run="another")
    rows.change("a2", exact=True)
    assert [(module.run, module.module, module.left_out) for module in lint_of(rows).modules] == [
        ("another", "act", {"singleton": 1}),
        ("try-1", "act", {"singleton": 1}),
        (None, "act", {"singleton": 1}),
    ]


def test_what_leads_nowhere_is_found_in_the_store(tmp_path):
    """Completions, scores and lines that belong to nothing, and rollouts that a trainer can make nothing of."""
    path = tmp_path / "traces.duckdb"
    write_segment(
        path,
        "1-1-a",
        *a_rollout(),
        record(names.RECORD_ROLLOUT, "s1", rollout_id="r9", run="try-1", example_id="unserialisable-r9", pid=1),
        record(names.RECORD_COMPLETION, "c1", choice=0, response_id="nobody", prompt_token_ids=[1], text="x",
               completion_token_ids=[2], completion_logprobs=[-1.0]),
        record(names.RECORD_SCORE, "x1", rollout_id="unheard of", name="reward", value=1.0),
        record(names.RECORD_SCORE, "x2", call_id="unheard of", name="reward", value=1.0),
        record(names.RECORD_SCORE, "x2", call_id="unheard of", name="reward", value=2.0),
        b"not a line\n",
    )  # fmt: skip
    assert Store(path).lint() == LintReport(
        (ModuleLint("try-1", "hop", 3, 0, {"singleton": 3}, {}),),
        {
            "no_calls": 1,
            "unserialisable_examples": 1,
            "unclaimed_completions": 1,
            "unknown_scores": 2,
            "rejected_lines": 1,
            "conflicting_lines": 1,
        },
    )


def test_a_store_without_calls_has_nothing_to_find(tmp_path):
    """No module, no finding."""
    report = Store(tmp_path / "traces.duckdb").lint()
    assert (report, report.findings, report.rows()) == (LintReport((), {}), [], [])


def test_a_trace_without_a_rollout_is_looked_at_too(tmp_path):
    """Calls of a production trace are unscored until somebody scores them."""
    path = tmp_path / "traces.duckdb"
    write_segment(path, "1-1-a", span("chat", 1, KIND="lm", OPERATION="chat", OUTPUT_MESSAGES=answer("yes")))
    assert [(module.calls, module.left_out) for module in Store(path).lint().modules] == [(1, {"unscored": 1})]


def test_rows_are_one_number_each():
    """A report as rows has the totals, then what was found, with what to do."""
    rows = lint_of(pair(reward=1.0).rollout("silent", 1.0, {})).rows()
    assert rows == [
        {"run": "try-1", "module": "act", "kind": "total", "finding": "calls", "count": 2, "remedy": ""},
        {"run": "try-1", "module": "act", "kind": "total", "finding": "trainable", "count": 0, "remedy": ""},
        {
            "run": "try-1", "module": "act", "kind": "left_out", "finding": "constant", "count": 2,
            "remedy": FINDINGS["constant"].remedy,
        },
        {
            "run": None, "module": None, "kind": "store", "finding": "no_calls", "count": 1,
            "remedy": FINDINGS["no_calls"].remedy,
        },
    ]  # fmt: skip


def test_a_condition_that_is_none_is_refused(tmp_path):
    """DuckDB's reason is given."""
    with pytest.raises(QueryError, match=r"where='nothing = 1': Binder Error: .*nothing"):
        Store(tmp_path / "traces.duckdb").lint(where="nothing = 1")


def test_looking_changes_nothing(tmp_path):
    """A store that is read only can be looked at, and is as it was."""
    path = tmp_path / "traces.duckdb"
    write_segment(path, "1-1-a", *a_rollout())
    Store(path).ingest()
    before = path.read_bytes()
    Store(path, read_only=True).lint()
    assert path.read_bytes() == before
    with duckdb.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM duckdb_tables() WHERE temporary").fetchall() == [(0,)]
