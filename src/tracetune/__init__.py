"""tracetune: decorate a language-model program, record its calls, and train it.

Names load when they are first used, so importing this package is cheap and brings in
neither torch nor duckdb.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracetune.adapters import instrument, uninstrument
    from tracetune.errors import FormatError, RolloutClosed, TracetuneError
    from tracetune.grouping import QueryLimits, Store
    from tracetune.offline import OfflineResult, train
    from tracetune.online import Result, optimize
    from tracetune.recording import record, start_recording
    from tracetune.tracer import module, policy, program, record_call, reward, rollout, tool
    from tracetune.types import Example, Grouping, Policy, Sampling, Score, Teacher

_HOMES = {
    "Example": "tracetune.types",
    "FormatError": "tracetune.errors",
    "Grouping": "tracetune.types",
    "OfflineResult": "tracetune.offline",
    "Policy": "tracetune.types",
    "QueryLimits": "tracetune.grouping",
    "Result": "tracetune.online",
    "RolloutClosed": "tracetune.errors",
    "Sampling": "tracetune.types",
    "Score": "tracetune.types",
    "Store": "tracetune.grouping",
    "Teacher": "tracetune.types",
    "TracetuneError": "tracetune.errors",
    "instrument": "tracetune.adapters",
    "module": "tracetune.tracer",
    "optimize": "tracetune.online",
    "policy": "tracetune.tracer",
    "program": "tracetune.tracer",
    "record": "tracetune.recording",
    "record_call": "tracetune.tracer",
    "reward": "tracetune.tracer",
    "rollout": "tracetune.tracer",
    "start_recording": "tracetune.recording",
    "tool": "tracetune.tracer",
    "train": "tracetune.offline",
    "uninstrument": "tracetune.adapters",
}

__all__ = [
    "Example",
    "FormatError",
    "Grouping",
    "OfflineResult",
    "Policy",
    "QueryLimits",
    "Result",
    "RolloutClosed",
    "Sampling",
    "Score",
    "Store",
    "Teacher",
    "TracetuneError",
    "instrument",
    "module",
    "optimize",
    "policy",
    "program",
    "record",
    "record_call",
    "reward",
    "rollout",
    "start_recording",
    "tool",
    "train",
    "uninstrument",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tracetune")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tracetune' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
