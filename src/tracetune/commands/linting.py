"""The command that says what keeps calls from being trained on: `lint`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracetune.commands.app import WAIT_SECONDS, StorePath, Wait, app, open_store, say
from tracetune.terminal import write_json, write_table

if TYPE_CHECKING:
    from tracetune.grouping import LintReport


@app.command(epilog="Example: tracetune lint demo.duckdb --where \"run = 'run-1'\"")
def lint(
    store: StorePath,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help="A condition on the columns of the view calls.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array, one object a line.")] = False,
    wait: Wait = WAIT_SECONDS,
) -> None:
    """Tell how many calls can be trained on, and what to do about the others.

    Calls are grouped as Grouping() does. Findings are no failure: the exit status is 0.
    """
    report = open_store(store, wait).lint(where=where)
    if as_json:
        rows = report.rows()
        write_json(list(rows[0]) if rows else [], (tuple(row.values()) for row in rows), sys.stdout)
        return
    _print_tables(report)
    _say_remedies(report)


def _print_tables(report: LintReport) -> None:
    left_out = _found(report, "left_out")
    tables: dict[str, tuple[list[str], list[list[Any]]]] = {
        "calls": (
            ["run", "module", "calls", "trainable", *left_out],
            [
                [module.run, module.module, module.calls, module.trainable]
                + [module.left_out.get(finding, 0) for finding in left_out]
                for module in report.modules
            ],
        )
    }
    if notes := _found(report, "note"):
        tables["trainable, but"] = (
            ["run", "module", *notes],
            [
                [module.run, module.module, *(module.notes.get(finding, 0) for finding in notes)]
                for module in report.modules
                if module.notes
            ],
        )
    if report.store:
        tables["the store"] = (["finding", "count"], [[finding, count] for finding, count in report.store.items()])
    for place, (title, (columns, rows)) in enumerate(tables.items()):
        print(title if place == 0 else f"\n{title}")
        write_table(columns, rows, sys.stdout)


def _say_remedies(report: LintReport) -> None:
    from tracetune.grouping import FINDINGS

    for finding in report.findings:
        say(f"{finding}: {FINDINGS[finding].meaning}; {FINDINGS[finding].remedy}")


def _found(report: LintReport, kind: str) -> list[str]:
    from tracetune.grouping import FINDINGS

    return [finding for finding in report.findings if FINDINGS[finding].kind == kind]
