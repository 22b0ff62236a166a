"""The span that decorated functions and LM calls record: OpenTelemetry's, without the detours.

It is a `ReadableSpan` to every processor and exporter, and the current span to every
other instrumentation. The SDK's own span would ask a sampler, copy and check each
attribute under a lock and count itself as a metric, which together cost more than
everything else that a traced call does; a span that is always recorded, whose attributes
were made by us, needs none of it. Neither do the limits and the sampler that an
application sets for its own spans take anything from ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tracetune.tracer import sources
from tracetune.tracer.outcomes import exception_event

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class RecordedSpan(trace.Span, ReadableSpan):
    """A span that is open, and after `end` the finished one.

    Args:
        name: what it shows.
        parent: the span it is a child of; without a valid one it is the root of a trace.
        attributes: taken over, not copied.
        ended: called once, with the finished span.
    """

    def __init__(
        self,
        name: str,
        *,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        start_time: int,
        resource: Resource,
        instrumentation_scope: InstrumentationScope,
        ended: Callable[[RecordedSpan], None],
    ) -> None:
        if parent is not None and not parent.is_valid:
            parent = None
        trace_id = sources.trace_id() if parent is None else parent.trace_id
        ReadableSpan.__init__(
            self,
            name=name,
            context=SpanContext(trace_id, sources.span_id(), is_remote=False, trace_flags=_SAMPLED),
            parent=parent,
            resource=resource,
            attributes=attributes,
            kind=kind,
            start_time=start_time,
            instrumentation_scope=instrumentation_scope,
        )
        self._attributes: dict[str, Any] = attributes
        self._ended = ended

    @property
    def id(self) -> str:
        """The span id in hexadecimal."""
        return f"{self.get_span_context().span_id:016x}"

    def get_span_context(self) -> SpanContext:
        """Trace id and span id."""
        return self._context  # type: ignore[return-value]  # None only in spans that others make

    def is_recording(self) -> bool:
        """Whether it is open; what is said of it later is not kept."""
        return self._end_time is None

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Say several things of it."""
        if self._end_time is None:
            self._attributes.update(attributes)

    def set_attribute(self, key: str, value: Any) -> None:
        """Say one thing of it."""
        if self._end_time is None:
            self._attributes[key] = value

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Say what happened while it was open."""
        if self._end_time is None:
            self._events = (*self._events, Event(name, attributes, timestamp or sources.now()))

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Say which other span it has to do with."""
        if self._end_time is None:
            self._links = (*self._links, trace.Link(context, attributes))

    def update_name(self, name: str) -> None:
        """Show it under another name."""
        if self._end_time is None:
            self._name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Say how it went."""
        if self._end_time is None:
            self._status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Say that an exception was seen, as the conventions have it."""
        event = {**exception_event(exception), "exception.escaped": str(escaped), **(attributes or {})}
        self.add_event("exception", event, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Finish it; only the first time counts."""
        if self._end_time is None:
            self._end_time = end_time if end_time is not None else sources.now()
            self._ended(self)
