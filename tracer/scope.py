"""The ambient scope: under which run, in which rollout and in which module's execution code runs.

It lives in OpenTelemetry's own Context, so whatever carries that carries it. A scope is
a value; what changes while a program runs (ordinals, overlaps) is in the `Execution`
and the `Executions` that it points to. Frameworks that carry a context of their own tell
by a locator where in it code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, set_span_in_context

from tracetune.tracer import names
from tracetune.tracer.handles import RolloutHandle
from tracetune.tracer.invocations import Execution, Executions
from tracetune.tracer.session import Session
from tracetune.tracer.setting import Setting

_KEY = otel_context.create_key("tracetune-scope")
# OpenTelemetry's own key of the current span, which it keeps to itself.
(_SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())


class Scope(NamedTuple):
    """Where code runs, as its spans will say.

    Attributes:
        executions: the rollout's, or those of a module that was called outside any rollout.
        execution: the nearest enclosing one.
        lm_call: the span id of an LM call that is being made, with its turn; a call
            inside it is another instrumentation's view of the same one.
        call_kind: "call", or "score" inside a reward function.
    """

    setting: Setting
    rollout: RolloutHandle | None = None
    executions: Executions | None = None
    execution: Execution | None = None
    lm_call: OpenCall | None = None
    call_kind: str = "call"

    def attributes(self) -> dict[str, Any]:
        """Run, split, step, policy and rollout, as span attributes; the caller may add to them."""
        attributes = self.setting.span_attributes() if self.rollout is None else self.rollout.span_attributes()
        if self.call_kind != "call":
            attributes[names.CALL_KIND] = self.call_kind
        return attributes

    def call_attributes(self) -> dict[str, Any]:
        """The attributes of an LM call that begins here, its turn apart."""
        attributes = self.attributes()
        attributes[names.KIND] = "lm"
        attributes[names.CALL_KIND] = self.call_kind
        if self.execution is not None:
            attributes[names.MODULE] = self.execution.module
            attributes[names.KEY] = self.execution.key
            attributes[names.EXECUTION] = self.execution.span_id
            attributes[names.INVOCATION] = self.execution.invocation
        if self.lm_call is not None:
            attributes[names.LM_PARENT] = self.lm_call.span_id
        return attributes

    def next_turn(self) -> int:
        """The ordinal of an LM call that begins here; one inside another takes over the other's."""
        if self.lm_call is not None and not self.lm_call.has_inner:
            self.lm_call.has_inner = True
            return self.lm_call.turn
        if self.execution is not None:
            return next(self.execution.turns)
        return next(self.executions.turns) if self.executions is not None else 0


class OpenCall:
    """An LM call that is being made; another that begins inside it takes over its turn."""

    __slots__ = ("has_inner", "span_id", "turn")

    def __init__(self, span_id: str, turn: int) -> None:
        self.span_id = span_id
        self.turn = turn
        self.has_inner = False


_OUTSIDE = Scope(Setting())
# That of contexts which carry none, while something records.
_ambient = _OUTSIDE


# Each gives the context of the framework's node that code runs in; replaced as a whole, never changed.
_locators: tuple[Callable[[], Context | None], ...] = ()


def add_locator(locate: Callable[[], Context | None]) -> None:
    """From now on, ask a framework where code runs, besides OpenTelemetry's context.

    Args:
        locate: gives the context of the node that the caller runs in; None outside any.
    """
    global _locators
    _locators = (*_locators, locate)


def enclosing_context() -> Context:
    """OpenTelemetry's present context, or that of a framework's node which lies deeper."""
    context = otel_context.get_current()
    for locate in _locators:
        located = locate()
        if located is not None:
            context = deeper(context, located)
    return context


def deeper(context: Context, located: Context) -> Context:
    """The second context where it lies inside the first, else the first."""
    outer, inner = otel_context.get_value(_KEY, context), otel_context.get_value(_KEY, located)
    if not isinstance(inner, Scope):
        return context
    if not isinstance(outer, Scope):
        return located
    if outer.rollout is not None and outer.rollout is not inner.rollout:
        return context
    if outer.execution is inner.execution and outer.rollout is inner.rollout:
        return located if outer.lm_call is None and inner.lm_call is not None else context
    execution = inner.execution
    while execution is not None and execution is not outer.execution:
        execution = execution.parent
    return located if execution is outer.execution else context


def ambient_scope() -> Scope:
    """The scope of code that nothing carried a scope to, while something records."""
    return _ambient


def set_ambient_scope(scope: Scope | None) -> None:
    """From now on, code that nothing carried a scope to runs in this one; None: outside of everything."""
    global _ambient
    _ambient = scope or _OUTSIDE


def current_scope(session: Session | None, context: Context | None = None) -> Scope:
    """The scope in force; in a context that a finished recording left behind, that of the present one."""
    scope = otel_context.get_value(_KEY, enclosing_context() if context is None else context)
    if isinstance(scope, Scope):
        recorded = scope.setting.session
        if session is None or recorded is session or recorded is None:
            return scope
    return _ambient if session is not None else _OUTSIDE


def with_scope(scope: Scope, context: Context | None = None) -> Context:
    """A context in which this scope is in force."""
    return otel_context.set_value(_KEY, scope, context)


def with_scope_and_span(scope: Scope, span: Span, context: Context) -> Context:
    """A context in which this scope is in force and this span is current, copied once instead of twice."""
    return Context({**context, _KEY: scope, _SPAN_KEY: span})
