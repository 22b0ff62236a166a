"""What keeps calls from being trained on, module by module, and what to do about it.

A call is trainable where it stands in a group; where it does not, it has exactly one reason,
the first in the order of work. Both come from the stages that `store.groups` runs, so the
two never disagree. Notes are said of calls that can be trained on, as they are. Everything
is counted in SQL: no call is looked at in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tracetune.grouping.groups.align import sql_text
from tracetune.grouping.groups.batches import aligned
from tracetune.grouping.queries.results import read_table
from tracetune.types import Grouping

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class Finding:
    """A thing to find, and what to do about it.

    Attributes:
        kind: "left_out" (the call is in no group), "note" (it is in one) or "store".
        meaning: what is the case.
        remedy: what to do.
    """

    kind: Literal["left_out", "note", "store"]
    meaning: str
    remedy: str


# What leaves a call out stands in the order of work: the first that applies is the reason.
FINDINGS: Mapping[str, Finding] = {
    "score_call": Finding("left_out", "made by a reward function", "nothing: a judge is not trained"),
    "other_module": Finding("left_out", "not one of the modules to train", "name its module in Grouping(modules=…)"),
    "no_rollout": Finding("left_out", "its rollout was never recorded", "import the traces that its rollout is in"),
    "superseded": Finding("left_out", "its step was done again after a resumption", "nothing: later rollouts count"),
    "interrupted": Finding("left_out", "the process died before the rollout ended", "run its example again"),
    "running": Finding("left_out", "its rollout has not ended yet", "wait for it"),
    "late": Finding(
        "left_out",
        "ended after its rollout was closed",
        "let the program wait for its background work, or give optimize a longer timeout",
    ),
    "cached": Finding(
        "left_out",
        "its response had been given to an earlier call",
        "switch off the client's cache while rollouts are recorded",
    ),
    "no_completion": Finding(
        "left_out",
        "nothing came back",
        "look at error_type of its span in spans: a network, a limit, a key",
    ),
    "truncated": Finding(
        "left_out",
        "its text was shortened and its tokens are not known",
        "sample from tracetune's endpoint, which records tokens, or pass shorter texts",
    ),
    "redacted": Finding(
        "left_out",
        "its text held a secret that was replaced, and its tokens are not known",
        "keep secrets out of prompts; or sample from tracetune's endpoint, which records tokens",
    ),
    "unscored": Finding(
        "left_out", "its rollout has no reward", "call tt.reward in the rollout, or Store.reward later"
    ),
    "missing": Finding("left_out", "a rollout of its example never called the module", 'group with missing="keep"'),
    "ragged": Finding("left_out", "beyond the shortest rollout of its example", 'group with ragged="keep" or "fill"'),
    "not_selected": Finding("left_out", "its group was larger than size", "raise Grouping(size=…), or nothing"),
    "constant": Finding(
        "left_out",
        "all rewards of its group are equal",
        "more rollouts an example, a higher temperature, a finer reward, or examples neither always nor never solved",
    ),
    "singleton": Finding(
        "left_out",
        "alone in its group",
        'several rollouts of each example, or compare across them: by=("module", "invocation") or advantage="batch"',
    ),
    "not_exact": Finding(
        "note",
        "its tokens are not known, so its text would be tokenised anew",
        "sample from tracetune's endpoint, which records the exact tokens",
    ),
    "not_on_policy": Finding(
        "note",
        "sampled greedily, or with top_p or top_k, so its log-probabilities are computed anew",
        "sample rollouts with temperature above 0 and without top_p and top_k",
    ),
    "cut_at_limit": Finding(
        "note", "its completion ends at the token limit", "raise max_tokens, or reward shorter completions"
    ),
    "unparsed": Finding(
        "note",
        "its rollout ended in a format error and earns format_reward",
        "nothing, or read the last call's completion: is the parser too strict?",
    ),
    "failed": Finding(
        "note",
        "its rollout crashed or timed out and earns failure_reward",
        "see error_type in rollouts: mend what is not the policy's fault",
    ),
    "stale_policy": Finding(
        "note",
        "sampled by another policy version than its rollout started with",
        "publish weights between rollouts, not during them",
    ),
    "unordered": Finding(
        "note",
        "executions of its module overlapped, so that groups mix them up",
        "name them: @tt.module(key=…)",
    ),
    "shortened": Finding(
        "note",
        "its text was shortened, and its tokens are known",
        "nothing, or pass shorter texts to read them",
    ),
    "redacted_text": Finding(
        "note",
        "its text held a secret that was replaced, and its tokens, which are known, may still hold it",
        "keep secrets out of prompts; Store.delete takes a rollout out with its tokens",
    ),
    "not_everywhere": Finding(
        "note",
        "rollouts of the same program that never called the module",
        'nothing under missing="keep"; "strict" leaves the module out for their examples',
    ),
    "no_calls": Finding(
        "store",
        "rollouts that made no call",
        "instrument the client (tt.instrument), or report its calls with tt.record_call",
    ),
    "unserialisable_examples": Finding(
        "store",
        "rollouts without an example_id whose input is not JSON, so that each is an example of its own",
        "give an id: tt.rollout(example_id=…)",
    ),
    "unclaimed_completions": Finding(
        "store",
        "completions of the endpoint that no call claims",
        "instrument the client that asked, or pass response_id to tt.record_call",
    ),
    "unknown_scores": Finding(
        "store",
        "scores of rollouts or calls that were never recorded",
        "compare their ids with those in rollouts and calls, or import the missing traces",
    ),
    "rejected_lines": Finding(
        "store", "lines of the spool that could not be read", "see rejected.jsonl in the spool, which has the reasons"
    ),
    "conflicting_lines": Finding(
        "store",
        "spans and records whose id came twice with different contents",
        "give every writer ids of its own; both contents are kept",
    ),
}


@dataclass(frozen=True, slots=True)
class ModuleLint:
    """What one module of one run has to train on.

    Attributes:
        calls: how many it made, or reward functions made in it.
        trainable: how many of them stand in a group.
        left_out: why the others do not, and how many each; they add up to calls - trainable.
        notes: what is to be said of trainable calls, and of how many; `not_everywhere`
            counts rollouts. Like `left_out`, it names only what was found.
    """

    run: str | None
    module: str | None
    calls: int
    trainable: int
    left_out: Mapping[str, int]
    notes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LintReport:
    """What `Store.lint` found.

    Attributes:
        modules: one entry a run and module, in their order.
        store: what was found in no module in particular, and how many.
    """

    modules: Sequence[ModuleLint]
    store: Mapping[str, int]

    @property
    def findings(self) -> list[str]:
        """The names in `FINDINGS` of all that was found, in that order."""
        found = {*self.store}.union(*({*module.left_out, *module.notes} for module in self.modules))
        return [name for name in FINDINGS if name in found]

    def rows(self) -> list[dict[str, Any]]:
        """One row a number, for tables and files.

        Returns:
            Dictionaries with `run`, `module`, `kind` ("total", or as in `Finding`), `finding`,
            `count` and `remedy`. Each module has the totals `calls` and `trainable`.
        """
        rows = []
        for module in self.modules:
            totals = {"calls": module.calls, "trainable": module.trainable}
            for finding, count in {**totals, **module.left_out, **module.notes}.items():
                rows.append(_row(module.run, module.module, finding, count))
        return rows + [_row(None, None, finding, count) for finding, count in self.store.items()]


def lint(connection: duckdb.DuckDBPyConnection, grouping: Grouping, where: str | None = None) -> LintReport:
    """What the calls that a condition selects lack for training under a grouping.

    Raises:
        QueryError: if the condition is not one.
        InvalidReward: if a credit function gives what is not a finite number.
    """
    with aligned(connection, grouping, where) as alignment:
        counted = alignment.rows(f"FROM (\n{sql_text('lint_modules')}\n)\nORDER BY run, module")
        [store] = alignment.rows(sql_text("lint_rollouts")).to_pylist()
    [recorded] = read_table(connection, sql_text("lint_store")).to_pylist()
    return LintReport(
        tuple(
            ModuleLint(**{**row, "left_out": _found(row["left_out"] or {}), "notes": _found(row["notes"])})
            for row in counted.to_pylist(maps_as_pydicts="strict")
        ),
        _found(store | recorded),
    )


def _found(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in FINDINGS if counts.get(name)}


def _row(run: str | None, module: str | None, finding: str, count: int) -> dict[str, Any]:
    known = FINDINGS.get(finding)
    return {
        "run": run,
        "module": module,
        "kind": known.kind if known else "total",
        "finding": finding,
        "count": count,
        "remedy": known.remedy if known else "",
    }
