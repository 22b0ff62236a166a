"""Copies LM spans of other instrumentations into the spool.

An application that traces itself has a tracer provider of its own, and libraries that
instrument language models end their spans there. One processor on that provider copies
those spans, stamped with the scope that they started in and without the secrets that
their names tell of. Inside a program, the agents and tools that such a library tells of
are modules and tools like the decorated ones. Where none of our decorators says whose
call it is, the spans around it are copied too: one of them names the module. The SDK
can't take a processor away again, so it stays there and does nothing while nothing
records.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, Span, SpanProcessor, TracerProvider

from tracetune.redaction import Redacted, holds_message, is_secret, redacted_attribute
from tracetune.tracer import names
from tracetune.tracer.capture import MESSAGES_LIMIT, Capture
from tracetune.tracer.invocations import Execution
from tracetune.tracer.scope import Scope, add_locator, current_scope, deeper, enclosing_context, with_scope
from tracetune.tracer.session import Session

_LM_OPERATIONS = (None, "chat", "text_completion", "generate_content")

# What a span of these operations is, and the attribute with its name.
_NODES = {"invoke_agent": ("module", "gen_ai.agent.name"), "execute_tool": ("tool", "gen_ai.tool.name")}

_session: Session | None = None
_watched: weakref.WeakSet[TracerProvider] = weakref.WeakSet()


# Each says whether a framework's adapter is recording the call that code is in.
_reporters: tuple[Callable[[], bool], ...] = ()


def add_reporter(reports: Callable[[], bool]) -> None:
    """From now on, leave out the LM spans that end while a framework's adapter records the call itself."""
    global _reporters
    _reporters = (*_reporters, reports)


def copy_to(session: Session) -> None:
    """From now on the application's LM spans are also written to this session's spool."""
    global _session
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider) and provider not in _watched:
        copy = _Copy()
        provider.add_span_processor(copy)
        add_locator(copy.locate)
        _watched.add(provider)
    _session = session


def stop_copying() -> None:
    """Undo `copy_to`."""
    global _session
    _session = None


def is_lm_span(span: trace.Span | ReadableSpan) -> bool:
    """Whether a span says, in any convention that the store reads, that it is one completion of a language model."""
    attributes = span.attributes if isinstance(span, ReadableSpan) else None
    attributes = attributes or {}
    if names.OPENINFERENCE_KIND in attributes:
        return attributes[names.OPENINFERENCE_KIND] == "LLM"
    if names.TRACELOOP_REQUEST in attributes:
        return attributes[names.TRACELOOP_REQUEST] in ("chat", "completion")
    return names.REQUEST_MODEL in attributes and attributes.get(names.OPERATION) in _LM_OPERATIONS


class _Copy(SpanProcessor):
    """Remembers the scope inside each span, and copies the span with it when it ends."""

    def __init__(self) -> None:
        self._scopes: dict[int, Scope] = {}
        # The agents and tools among them, which a program's code runs in, by what they are.
        self._nodes: dict[int, str] = {}
        # Open spans around calls whose module nothing of ours names.
        self._enclosing: set[int] = set()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if _session is not None:
            here = enclosing_context()
            context = here if parent_context is None else deeper(self._inside(parent_context), here)
            self._scopes[span.get_span_context().span_id] = self._entered(span, current_scope(_session, context))

    def locate(self) -> Context | None:
        """The context of the agent or tool that code runs in; None where there is none."""
        return self._inside(otel_context.get_current()) if self._nodes else None

    def _inside(self, context: Context) -> Context:
        """The context with the scope that is in force inside its span."""
        scope = self._scopes.get(trace.get_current_span(context).get_span_context().span_id)
        return context if scope is None else deeper(context, with_scope(scope, context))

    def _entered(self, span: Span, scope: Scope) -> Scope:
        """The scope inside a span: of an agent or a tool in a program, that of an execution that begins."""
        attributes = span.attributes or {}
        kind, attribute = _NODES.get(str(attributes.get(names.OPERATION)), ("", ""))
        if not kind or scope.execution is None or scope.executions is None or scope.lm_call is not None:
            return scope
        execution = Execution(str(attributes.get(attribute) or span.name), "", scope.execution)
        execution.enter(scope.executions)
        span_id = span.get_span_context().span_id
        execution.span_id = f"{span_id:016x}"
        self._nodes[span_id] = kind
        return scope._replace(execution=execution)

    def on_end(self, span: ReadableSpan) -> None:
        span_id = span.context.span_id
        scope = self._scopes.pop(span_id, None)
        node_kind = self._nodes.pop(span_id, None)
        if node_kind is not None and scope is not None and scope.execution is not None:
            scope.execution.leave()
        is_enclosing = span_id in self._enclosing
        self._enclosing.discard(span_id)
        session = _session
        if session is None or scope is None:
            return
        if scope.rollout is not None and not scope.rollout.is_sampled:
            return
        if is_lm_span(span):
            if any(reports() for reports in _reporters):
                return  # told twice, and ours is the one that knows its response
            stamps = scope.call_attributes()
            stamps[names.TURN] = scope.next_turn() if scope.lm_call is None else scope.lm_call.turn
        elif node_kind is not None:
            stamps = {**scope.call_attributes(), names.KIND: node_kind}
            if scope.call_kind == "call":
                del stamps[names.CALL_KIND]  # as at a decorated function, only a reward's nodes say so
        elif is_enclosing:
            stamps = scope.attributes()
        else:
            return
        if scope.execution is not None and scope.execution.is_unordered:
            stamps[names.UNORDERED] = True
        if scope.execution is None and span.parent is not None and span.parent.span_id in self._scopes:
            self._enclosing.add(span.parent.span_id)
        if scope.rollout is not None and scope.rollout.is_late(scope.call_kind):
            stamps[names.LATE] = True
        session.spool.write_span(_stamped(span, stamps, session.capture))


def _stamped(span: ReadableSpan, stamps: dict[str, Any], capture: Capture) -> ReadableSpan:
    shortened: list[str] = []
    redacted: list[str] = []
    attributes = _kept(span.attributes or {}, capture, shortened, redacted)
    events = []
    for event in span.events:
        cut: list[str] = []
        changed: list[str] = []
        kept = _kept(event.attributes or {}, capture, cut, changed, in_message=holds_message(event.name))
        if cut:
            kept[names.TRUNCATED] = cut
        if changed:
            redacted.append(event.name)
        events.append(Event(event.name, kept, event.timestamp))
    if shortened:
        attributes[names.TRUNCATED] = shortened
    if redacted:
        attributes[names.REDACTED] = redacted
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes={**attributes, **stamps},
        events=events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _kept(
    attributes: Mapping[str, Any],
    capture: Capture,
    shortened: list[str],
    redacted: list[str],
    *,
    in_message: bool = False,
) -> dict[str, Any]:
    """Attributes as another instrumentation has them, without secrets and not endless.

    Args:
        attributes: as they are.
        capture: cuts them, with the hook.
        shortened: gets the names of those that were cut.
        redacted: gets the names of those that hold a prompt or an answer and were changed.
        in_message: whether all of them do.
    """
    kept: dict[str, Any] = {}
    for name, value in attributes.items():
        if isinstance(value, str) and not is_secret(name):
            text = capture.cut(value, MESSAGES_LIMIT, partial(redacted_attribute, name))
            kept[name] = Redacted(text.text)
            is_changed = text.is_redacted
            if text.is_cut:
                shortened.append(name)
        else:
            kept[name] = redacted_attribute(name, value)
            is_changed = kept[name] != value
        if is_changed and (in_message or holds_message(name)) and not is_secret(name):
            redacted.append(name)
    return kept
