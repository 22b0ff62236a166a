"""Spans and scores of other tools' logs, as lines of the spool in the tracer's own words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode

from tracetune.adapters.formats import Line
from tracetune.adapters.logs.values import dumped, span_hex, span_number, trace_hex, trace_number
from tracetune.tracer import encoding, names
from tracetune.tracer.messages import to_genai

_SCOPE = InstrumentationScope(encoding.SCOPE_NAME)
_RESOURCE = Resource.get_empty()
_SAMPLING = {
    "temperature": (names.TEMPERATURE, float),
    "top_p": (names.TOP_P, float),
    "top_k": (names.TOP_K, int),
    "max_tokens": (names.MAX_TOKENS, int),
    "max_completion_tokens": (names.MAX_TOKENS, int),
    "seed": (names.SEED, int),
    "n": (names.CHOICE_COUNT, int),
}


@dataclass(slots=True)
class LoggedSpan:
    """One span of a log: an LM call, a node around such calls, or something else.

    Attributes:
        trace: the source's name of the trace, which is one rollout.
        id: the source's name of the span, which no other span of the source has.
        parent: that of the span around it.
        kind: "program", "module", "tool", "lm", or None.
        started_at: nanoseconds since the epoch.
        ended_at: likewise.
        attributes: by the names of `tracer.names`; those that are None are left out.
        error: the message of what it failed with.
    """

    trace: str
    id: str
    parent: str | None
    name: str
    kind: str | None
    started_at: int
    ended_at: int
    attributes: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def line(self) -> Line:
        """The span as a line of the spool."""
        trace = trace_number(self.trace)
        parent = SpanContext(trace, span_number(self.parent), is_remote=False) if self.parent else None
        said = {names.KIND: self.kind, **self.attributes}
        text = encoding.span_line(
            ReadableSpan(
                self.name,
                context=SpanContext(trace, span_number(self.id), is_remote=False),
                parent=parent,
                attributes={name: value for name, value in said.items() if value is not None},
                start_time=self.started_at,
                end_time=max(self.started_at, self.ended_at),
                status=Status(StatusCode.ERROR, self.error) if self.error is not None else Status(),
                instrumentation_scope=_SCOPE,
                resource=_RESOURCE,
            )
        )
        return Line(text, 1, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of an LM call, as a chat message."""

    message: Mapping[str, Any]
    finish_reason: str | None = None


def call_attributes(
    messages: Sequence[Mapping[str, Any]] | None,
    answers: Sequence[Answer],
    *,
    model: str | None = None,
    sampling: Mapping[str, Any] | None = None,
    input_tokens: Any = None,
    output_tokens: Any = None,
    response_id: str | None = None,
    provider: str | None = None,
) -> dict[str, Any]:
    """The attributes of an LM span."""
    outputs = to_genai([{"role": "assistant", **answer.message} for answer in answers])
    for output, answer in zip(outputs, answers, strict=True):
        output["finish_reason"] = answer.finish_reason or ""
    attributes: dict[str, Any] = {
        names.OPERATION: "chat",
        names.PROVIDER: provider,
        names.REQUEST_MODEL: model,
        names.RESPONSE_ID: response_id,
        names.INPUT_TOKENS: _whole(input_tokens),
        names.OUTPUT_TOKENS: _whole(output_tokens),
        names.INPUT_MESSAGES: dumped(to_genai(messages)) if messages is not None else None,
        names.OUTPUT_MESSAGES: dumped(outputs) if outputs else None,
    }
    for name, value in (sampling or {}).items():
        if name in _SAMPLING and isinstance(value, int | float) and not isinstance(value, bool):
            attribute, kind = _SAMPLING[name]
            attributes[attribute] = kind(value)
    stop = (sampling or {}).get("stop")
    if isinstance(stop, str) or (isinstance(stop, list) and all(isinstance(item, str) for item in stop)):
        attributes[names.STOP] = [stop] if isinstance(stop, str) else stop
    return attributes


def score_line(
    trace: str,
    name: str,
    value: Any,
    *,
    source: str,
    record: str,
    time: int,
    call: str | None = None,
    feedback: str | None = None,
) -> Line:
    """A score of a rollout, or of one call, as a line of the spool.

    Args:
        trace: the source's name of the rollout's trace.
        name: of the score.
        value: a number, or a boolean.
        source: which tool it comes from.
        record: what no other score of that tool is known by.
        time: when it was given, in nanoseconds since the epoch.
        call: the source's name of the call's span, where it is the call's.
        feedback: what was said beside it.

    Raises:
        ValueError: if the value is not a finite number.
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"the score {name!r} is {value!r:.60}, not a finite number")
    body = {
        "rollout_id": trace_hex(trace) if call is None else None,
        "call_id": None if call is None else span_hex(call),
        "name": name,
        "value": float(value),
        "source": source,
        "feedback": feedback or "",
    }
    record_id = hashlib.sha256(f"{source}/{record}".encode()).hexdigest()[:32]
    return Line(encoding.record_line(names.RECORD_SCORE, body, {names.RECORD_ID: record_id}, time), 0, 1)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
