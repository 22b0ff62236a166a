"""What a refused object looks like, so that whoever named the wrong format hears of the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracetune.adapters.formats import Refused

_SIGNS = {
    "otlp": ("resourceSpans", "resourceLogs"),
    "langsmith": ("run_type", "dotted_order"),
    "langfuse": ("traceId", "parentObservationId", "parent_observation_id", "observations"),
    "openinference": ("context.trace_id", "span_kind"),
    "openai": ("request", "choices", "custom_id"),
    "rows": ("messages", "prompt", "completion"),
}


def not_as_asked(place: str, value: Mapping[str, Any], name: str, wanted: str) -> Refused:
    """The refusal of an object that is not of the format that was named.

    Args:
        place: where it stands.
        value: the object.
        name: the format that was named.
        wanted: what belongs there, in words.

    Example:
        >>> not_as_asked("line 1", {"run_type": "llm"}, "langfuse", "an observation").reason
        'it is not an observation; it looks like langsmith, which --format langsmith reads'
    """
    for other, signs in _SIGNS.items():
        if other != name and any(sign in value for sign in signs):
            return Refused(place, f"it is not {wanted}; it looks like {other}, which --format {other} reads")
    keys = ", ".join(sorted(map(str, value))[:6])
    return Refused(place, f"it is not {wanted}; its keys are {keys or 'none'}")
