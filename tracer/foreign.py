"""Copies LM spans of other instrumentations into the spool.

An application that traces itself has a tracer provider of its own, and libraries that
instrument language models end their spans there. One processor on that provider copies
those spans, stamped with the scope that they started in. The SDK can't take a processor
away again, so it stays there and does nothing while nothing records.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider

from tracetune.tracer import names
from tracetune.tracer.scope import Scope, current_scope

if TYPE_CHECKING:
    from tracetune.tracer.session import Session

_LM_OPERATIONS = (None, "chat", "text_completion", "generate_content")

_session: Session | None = None
_watched: weakref.WeakSet[TracerProvider] = weakref.WeakSet()


def copy_to(session: Session) -> None:
    """From now on the application's LM spans are also written to this session's spool."""
    global _session
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider) and provider not in _watched:
        provider.add_span_processor(_Copy())
        _watched.add(provider)
    _session = session


def stop_copying() -> None:
    """Undo `copy_to`."""
    global _session
    _session = None


def is_lm_span(span: trace.Span | ReadableSpan) -> bool:
    """Whether a span says, in the GenAI conventions, that it is one completion of a language model."""
    attributes = span.attributes if isinstance(span, ReadableSpan) else None
    attributes = attributes or {}
    return names.REQUEST_MODEL in attributes and attributes.get(names.OPERATION) in _LM_OPERATIONS


class _Copy(SpanProcessor):
    """Remembers the scope that a span starts in, and copies the span with it when it ends."""

    def __init__(self) -> None:
        self._scopes: dict[int, Scope] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if _session is not None:
            self._scopes[span.get_span_context().span_id] = current_scope(_session, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        scope = self._scopes.pop(span.context.span_id, None)
        session = _session
        if session is None or scope is None or not is_lm_span(span):
            return
        if scope.rollout is not None and not scope.rollout.is_sampled:
            return
        stamps = scope.call_attributes()
        stamps[names.TURN] = scope.next_turn() if scope.lm_call is None else scope.lm_call.turn
        if scope.execution is not None and scope.execution.is_unordered:
            stamps[names.UNORDERED] = True
        if scope.rollout is not None and scope.rollout.is_late(scope.call_kind):
            stamps[names.LATE] = True
        session.spool.write_span(
            ReadableSpan(
                name=span.name,
                context=span.context,
                parent=span.parent,
                resource=span.resource,
                attributes={**(span.attributes or {}), **stamps},
                events=span.events,
                links=span.links,
                kind=span.kind,
                status=span.status,
                start_time=span.start_time,
                end_time=span.end_time,
                instrumentation_scope=span.instrumentation_scope,
            )
        )
