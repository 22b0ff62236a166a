"""Tools that completions call: a column has their text, their spans have the rest.

Most stores hold none, so spans are read only where a finish reason says that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pyarrow as pa

from tracetune.tracer.messages import from_genai
from tracetune.types import Member

_REASONS = frozenset({"tool_calls", "function_call", "tool_call", "tool_use"})


def with_tool_calls(members: Sequence[Member], answers: Callable[[], pa.Table]) -> Sequence[Member]:
    """The members, those that call tools with the tools that they call.

    Args:
        members: as the columns of `calls` have them.
        answers: asks for the rows of `group_tool_calls.sql`.
    """
    if not any(member.finish_reason in _REASONS for member in members):
        return members
    calls = {row["call_id"]: _tool_calls(row["answers"], row["choice"]) for row in answers().to_pylist()}
    return [
        replace(member, tool_calls=calls[member.call_id]) if calls.get(member.call_id) else member for member in members
    ]


def _tool_calls(answers: str | None, choice: int) -> tuple[dict[str, Any], ...]:
    """The tools that a choice calls; none where another instrumentation wrote it in its own way."""
    try:
        [message] = from_genai([orjson.loads(answers or "[]")[choice]])
        return tuple(message.get("tool_calls", ()))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError):
        return ()
