"""The data's side: the store, its schema, and how calls are aligned into groups."""

from tracetune.grouping.ingest import IngestReport
from tracetune.grouping.limits import QueryLimits
from tracetune.grouping.lint import FINDINGS, Finding, LintReport, ModuleLint
from tracetune.grouping.programmatic import CallRow, RolloutRow
from tracetune.grouping.results import Result
from tracetune.grouping.store import Store

__all__ = [
    "FINDINGS",
    "CallRow",
    "Finding",
    "IngestReport",
    "LintReport",
    "ModuleLint",
    "QueryLimits",
    "Result",
    "RolloutRow",
    "Store",
]
