"""The ambient scope: under which run, in which rollout and in which module's execution code runs.

It lives in OpenTelemetry's own Context, so whatever carries that carries it. A scope is
a value; what changes while a program runs (ordinals, overlaps) is in the `Execution`
and the `Executions` that it points to. Frameworks that carry a context of their own tell
by a locator where in it code runs.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, set_span_in_context

from tracetune.tracer import names, sources
from tracetune.types import Policy

if TYPE_CHECKING:
    from tracetune.tracer.rollouts import RolloutHandle
    from tracetune.tracer.session import Session

_KEY = otel_context.create_key("tracetune-scope")
# OpenTelemetry's own key of the current span, which it keeps to itself.
(_SPAN_KEY,) = set_span_in_context(INVALID_SPAN, Context())

# Guards the ordinals of every rollout for a few instructions at a time. Held across a
# fork, so that a child never inherits it locked by a thread that it does not have.
# Re-entrant: the garbage collector may end an abandoned generator while it is held.
ordinals_lock = threading.RLock()
os.register_at_fork(
    before=ordinals_lock.acquire, after_in_parent=ordinals_lock.release, after_in_child=ordinals_lock.release
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recording or a rollout says of everything inside it.

    Attributes:
        session: the recording that was on; None where nothing recorded.
        sample: the fraction of rollouts that are recorded.
    """

    session: Session | None = None
    run: str = "default"
    split: str | None = None
    step: int | None = None
    policy: Policy | None = None
    sample: float = 1.0

    def attributes(self) -> dict[str, Any]:
        """As attributes of a record; the caller may add to them."""
        attributes: dict[str, Any] = {names.RUN: self.run}
        if self.split is not None:
            attributes[names.SPLIT] = self.split
        if self.step is not None:
            attributes[names.STEP] = self.step
        return attributes

    def span_attributes(self) -> dict[str, Any]:
        """As attributes of a span; the caller may add to them."""
        attributes = self.attributes()
        if self.policy is not None:
            attributes[names.POLICY_VERSION] = self.policy.version
        return attributes


class Execution:
    """One execution of a program, module or tool, while it lasts.

    Attributes:
        span_id: of its span, in hexadecimal.
        turns: gives the ordinals of its LM calls.
        is_unordered: it overlapped another execution of its module and key, or may have, in another process.
    """

    __slots__ = ("_lane", "invocation", "is_unordered", "key", "module", "parent", "span_id", "turns")

    def __init__(self, module: str, key: str, parent: Execution | None) -> None:
        self.module = module
        self.key = key
        self.parent = parent
        self.span_id = ""
        self.invocation = 0
        self.is_unordered = False
        self.turns = itertools.count()
        self._lane: _Lane | None = None

    def enter(self, executions: Executions) -> None:
        """Take its number among those of its module and key, and notice those that run beside it."""
        with ordinals_lock:
            lane = self._lane = executions.lane(self.module, self.key)
            self.invocation = lane.count
            lane.count += 1
            # Other children of the same fork count from the same number on.
            self.is_unordered = not self.key and executions.generation != sources.generation
            for other in lane.running:
                if not self._is_inside(other):
                    other.is_unordered = self.is_unordered = True
            lane.running.append(self)

    def leave(self) -> None:
        """It has ended."""
        lane, self._lane = self._lane, None
        if lane is not None:
            with ordinals_lock:
                lane.running.remove(self)

    def _is_inside(self, other: Execution) -> bool:
        """Whether the other execution called this one, at any depth: recursion has an order."""
        ancestor = self.parent
        while ancestor is not None and ancestor is not other:
            ancestor = ancestor.parent
        return ancestor is other


class _Lane:
    """The executions of one module and key in one rollout: how many there were, and which are running."""

    __slots__ = ("count", "running")

    def __init__(self) -> None:
        self.count = 0
        self.running: list[Execution] = []


class Executions:
    """The executions of one rollout.

    Attributes:
        turns: gives the ordinals of LM calls outside any execution.
        generation: the process that they began in.
    """

    __slots__ = ("_lanes", "generation", "turns")

    def __init__(self) -> None:
        self.generation = sources.generation
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self.turns = itertools.count()

    def lane(self, module: str, key: str) -> _Lane:
        """Those of one module and key; the caller holds the lock."""
        lane = self._lanes.get((module, key))
        if lane is None:
            lane = self._lanes[module, key] = _Lane()
        return lane


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


def current_scope(session: Session | None, context: Context | None = None) -> Scope:
    """The scope in force; in a context that a finished recording left behind, that of the present one."""
    scope = otel_context.get_value(_KEY, enclosing_context() if context is None else context)
    if isinstance(scope, Scope):
        recorded = scope.setting.session
        if session is None or recorded is session or recorded is None:
            return scope
    return session.scope if session is not None else _OUTSIDE


def with_scope(scope: Scope, context: Context | None = None) -> Context:
    """A context in which this scope is in force."""
    return otel_context.set_value(_KEY, scope, context)


def with_scope_and_span(scope: Scope, span: Span, context: Context) -> Context:
    """A context in which this scope is in force and this span is current, copied once instead of twice."""
    return Context({**context, _KEY: scope, _SPAN_KEY: span})
