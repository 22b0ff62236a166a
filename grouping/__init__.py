"""The data's side: the store, its schema, and how calls are aligned into groups."""

from tracetune.grouping.exchange.add_rollouts import CallRow, RolloutRow
from tracetune.grouping.groups.lint import FINDINGS, Finding, LintReport, ModuleLint
from tracetune.grouping.ingest.pipeline import IngestReport
from tracetune.grouping.queries.limits import QueryLimits
from tracetune.grouping.queries.results import Result
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
