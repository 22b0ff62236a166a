"""What a decorated function records: its span, from entry to result or exception.

Nothing here raises into the program or changes what it gives: where recording itself
fails the function runs as if it were not decorated, and one warning says so.
"""

from __future__ import annotations

import atexit
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from tracetune.errors import InvalidInput
from tracetune.tracer import names, session, sources
from tracetune.tracer.capture import VALUE_LIMIT
from tracetune.tracer.handles import RolloutHandle
from tracetune.tracer.interrupts import is_interrupt
from tracetune.tracer.invocations import Execution, Executions
from tracetune.tracer.outcomes import FAILED, message_of, record_failure
from tracetune.tracer.scope import (
    Scope,
    ambient_scope,
    current_scope,
    enclosing_context,
    with_scope,
    with_scope_and_span,
)
from tracetune.tracer.session import Session
from tracetune.tracer.spans import RecordedSpan
from tracetune.tracer.values import type_name

# How many items the span of a generator shows; a stream may be endless.
ITEMS_LIMIT = 1000

# The executions of this process that are under way, here or put aside.
_open: set[OpenExecution] = set()

# Executions that could not be recorded, and why. Told where there is enough stack for a warning: a recursive
# function may have used it up, and then an execution further out tells.
_untold: list[tuple[Session, Node, Exception]] = []

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Node:
    """A program, module or tool by its name: a decorated function, or a framework's node.

    Args:
        kind: "program", "module" or "tool".
        name: the module's name.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name

    def enter(
        self, arguments: Mapping[str, Any], *, key: str = "", context: Context | None = None
    ) -> OpenExecution | None:
        """Open the span of an execution; None where nothing records, or where that failed.

        Args:
            arguments: what it was given, by name.
            key: what tells parallel executions apart.
            context: where it runs; by default where this is called.
        """
        recorder = session.active
        if recorder is None:
            return None
        try:
            return self._open(recorder, enclosing_context() if context is None else context, arguments, key)
        except Exception as error:  # noqa: BLE001  tracing must not raise into the program
            _untold.append((recorder, self, error))
            try:  # noqa: SIM105  a context manager takes more stack
                _tell()
            except RecursionError:
                pass
            return None

    def _open(
        self, recorder: Session, parent_context: Context, arguments: Mapping[str, Any], key: str
    ) -> OpenExecution:
        scope = current_scope(recorder, parent_context)
        rollout, executions, is_root = scope.rollout, scope.executions, False
        if self.kind == "program" and rollout is None:
            setting = scope.setting
            if setting.session is None:
                setting = replace(setting, session=recorder, sample=ambient_scope().setting.sample)
            rollout = RolloutHandle(setting, id=sources.new_id(), ends_with_program=True)
            executions = rollout.executions
        if rollout is not None:
            is_root = self.kind == "program" and scope.call_kind == "call" and rollout.claim(self.name, arguments)
        if executions is None:
            executions = Executions()  # a module that is called outside any program
        execution = Execution(self.name, key, scope.execution)
        inner = Scope(scope.setting, rollout, executions, execution, None, scope.call_kind)
        execution.enter(executions)
        try:
            return self._begun(recorder, parent_context, arguments, inner, execution, is_root)
        except BaseException:  # an interrupt, or too little stack: it does not overlap those that come after it
            execution.leave()
            raise

    def _begun(
        self,
        recorder: Session,
        parent_context: Context,
        arguments: Mapping[str, Any],
        inner: Scope,
        execution: Execution,
        is_root: bool,
    ) -> OpenExecution:
        rollout = inner.rollout
        if rollout is not None and not rollout.is_sampled:
            rollout.start()
            return OpenExecution(self, recorder, None, inner, with_scope(inner, parent_context), is_root, [])

        input_json, is_shortened = recorder.capture.json(arguments)
        if rollout is not None and not rollout.has_started:
            rollout.start(input_json if is_root else "")
        attributes = inner.attributes()
        attributes[names.KIND] = self.kind
        attributes[names.MODULE] = self.name
        attributes[names.KEY] = execution.key
        attributes[names.INVOCATION] = execution.invocation
        attributes[names.INPUT] = input_json
        span = recorder.start_span(
            self.name, parent_context, attributes, kind=SpanKind.INTERNAL, start_time=sources.now()
        )
        execution.span_id = attributes[names.EXECUTION] = span.id
        if is_root and rollout is not None:
            rollout.root = span.get_span_context()
        if execution.is_unordered:
            recorder.warn_once(
                f"overlap of {self.name}",
                f"executions of {self.kind} {self.name!r} overlap, so they can't be aligned by their order; "
                f"give each branch a key: @{self.kind}(key=lambda …: …)",
            )
        context = with_scope_and_span(inner, span, parent_context)
        return OpenExecution(self, recorder, span, inner, context, is_root, [names.INPUT] if is_shortened else [])


class Traced(Node):
    """A decorated function: its name, its parameters, and how an execution of it begins.

    Args:
        kind: "program", "module" or "tool".
        function: what is decorated.
        name: the module's name; the function's own by default.
        key: given the arguments it names, gives the execution's key.
    """

    def __init__(
        self, kind: str, function: Callable[..., Any], name: str | None, key: Callable[..., object] | None
    ) -> None:
        super().__init__(kind, name or getattr(function, "__name__", None) or type(function).__name__)
        self._key = key
        parameters = _parameters(function)
        self._positional = [name for name, parameter in parameters.items() if parameter.kind in _POSITIONAL]
        self._rest = next((name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL), "args")
        # The instance or class that a method is called on is no input of the program's.
        self._owner = self._positional[0] if self._positional and self._positional[0] in ("self", "cls") else None
        self._defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        self._key_names = self._names_of_key(key, parameters) if key is not None else ()

    def _names_of_key(self, key: Callable[..., object], parameters: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        wanted = tuple(_parameters(key))
        unknown = [name for name in wanted if name not in parameters]
        if unknown and not takes_any:
            raise InvalidInput(
                f"the key of {self.kind} {self.name!r} asks for {', '.join(unknown)}, but the function's arguments are "
                f"{', '.join(parameters) or 'none'}; name its arguments as the function does"
            )
        return wanted

    def begin(self, recorder: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> OpenExecution | None:
        """Open the span of an execution in the present context; None where that failed."""
        try:
            return self._begin(recorder, args, kwargs)
        except Exception as error:  # noqa: BLE001  tracing must not raise into the program
            _untold.append((recorder, self, error))
            try:  # noqa: SIM105  a context manager takes more stack
                _tell()
            except RecursionError:
                pass
            return None

    def _begin(self, recorder: Session, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> OpenExecution:
        arguments = dict(zip(self._positional, args, strict=False))
        if len(args) > len(self._positional):
            arguments[self._rest] = args[len(self._positional) :]
        arguments.update(kwargs)
        key = self._key_of(recorder, arguments) if self._key is not None else ""
        if self._owner is not None:
            arguments.pop(self._owner, None)
        return self._open(recorder, enclosing_context(), arguments, key)

    def _key_of(self, recorder: Session, arguments: Mapping[str, Any]) -> str:
        try:
            known = {**self._defaults, **arguments}
            return str(self._key(**{name: known[name] for name in self._key_names}))  # type: ignore[misc]  # there is one
        except BaseException as error:  # the key is the user's, and must not end the program
            if is_interrupt(error):
                raise
            recorder.warn_once(
                f"key of {self.name}",
                f"the key of {self.kind} {self.name!r} raised {type_name(error)} ({message_of(error)}); "
                "such executions have none",
            )
            return ""


class OpenExecution:
    """An execution that has begun and not ended.

    Args:
        span: None where its rollout is not sampled.

    Attributes:
        context: what the function must run in.
    """

    __slots__ = ("_is_root", "_items", "_recorder", "_scope", "_shortened", "_span", "_traced", "context")

    def __init__(
        self,
        traced: Node,
        recorder: Session,
        span: RecordedSpan | None,
        scope: Scope,
        context: Context,
        is_root: bool,
        shortened: list[str],
    ) -> None:
        self.context = context
        self._traced = traced
        self._recorder = recorder
        self._span = span
        self._scope = scope
        self._is_root = is_root
        self._shortened = shortened
        self._items: _Items | None = None
        _open.add(self)

    def streams(self) -> None:
        """It is a generator's: the items that it gives are its output."""
        self._items = _Items()

    def gave(self, item: Any) -> None:
        """A generator has given one more item."""
        try:
            assert self._items is not None  # it streams
            self._items.add(item, self._recorder, is_kept=self._is_root, is_shown=self._span is not None)
        except Exception as failure:  # noqa: BLE001  tracing must not raise into the program
            _untold.append((self._recorder, self._traced, failure))

    def end(self, result: Any = None, *, error: BaseException | None = None) -> None:
        """Close the span with what the function gave or raised; only the first end counts."""
        try:
            _open.remove(self)
        except KeyError:
            return  # or it began in the process that this one was forked from, and ends there
        try:
            self._end(result, error)
        except Exception as failure:  # noqa: BLE001  tracing must not raise into the program
            _untold.append((self._recorder, self._traced, failure))
        except BaseException:  # an interrupt: the program gets it, and the span says so
            self.interrupt()
            raise
        if _untold:
            try:  # noqa: SIM105  a context manager takes more stack
                _tell()
            except RecursionError:
                pass

    def interrupt(self) -> None:
        """Close the span although the function has not returned: the process ends."""
        _open.discard(self)
        if self._span is None:
            return
        attributes: dict[str, Any] = {names.STATUS: "interrupted"}
        try:
            if self._items is not None:
                attributes[names.OUTPUT] = self._output(None)
            self._span.set_status(FAILED)
            self._close(self._span, attributes)
        except Exception as failure:  # noqa: BLE001  as in `end`
            _untold.append((self._recorder, self._traced, failure))
            _tell()

    def _end(self, result: Any, error: BaseException | None) -> None:
        scope, execution = self._scope, self._scope.execution
        assert execution is not None  # `begin` made it
        execution.leave()
        attributes: dict[str, Any] = {}
        output_json: str | None = None
        if self._span is not None:
            if error is None:
                output_json = attributes[names.OUTPUT] = self._output(result)
            else:
                record_failure(self._span, error, attributes, self._recorder.capture)
            self._close(self._span, attributes)
        if self._is_root and scope.rollout is not None:
            output = result if self._items is None else self._items.kept
            ended_at = self._span.end_time if self._span is not None else None
            scope.rollout.program_ended(error, output, output_json, ended_at or sources.now())

    def _output(self, result: Any) -> str:
        text, is_shortened = self._recorder.capture.json(result) if self._items is None else self._items.json()
        if is_shortened:
            self._shortened.append(names.OUTPUT)
        return text

    def _close(self, span: RecordedSpan, attributes: dict[str, Any]) -> None:
        scope = self._scope
        if self._shortened:
            attributes[names.TRUNCATED] = self._shortened
        if scope.execution is not None and scope.execution.is_unordered:
            attributes[names.UNORDERED] = True
        if scope.rollout is not None and scope.rollout.is_late(scope.call_kind):
            attributes[names.LATE] = True
        span.set_attributes(attributes)
        span.end(sources.now())


class _Items:
    """What a generator has given: shown as text at once, so that nothing is kept alive by being traced.

    Attributes:
        kept: the items themselves, of a program's generator: they are what is rewarded.
    """

    __slots__ = ("_is_shortened", "_left", "_parts", "kept")

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self._parts: list[str] = []
        self._left = VALUE_LIMIT
        self._is_shortened = False

    def add(self, item: Any, recorder: Session, *, is_kept: bool, is_shown: bool) -> None:
        if is_kept and len(self.kept) < ITEMS_LIMIT:
            self.kept.append(item)
        if not is_shown or self._is_shortened:
            return
        if self._left <= 0 or len(self._parts) == ITEMS_LIMIT:
            self._is_shortened = True
            return
        text, self._is_shortened = recorder.capture.json(item, self._left)
        self._parts.append(text)
        self._left -= len(text) + 1

    def json(self) -> tuple[str, bool]:
        return f"[{','.join(self._parts)}]", self._is_shortened


def _interrupt_all() -> None:
    for execution in list(_open):
        execution.interrupt()


# Runs before the spool closes, which was imported earlier.
atexit.register(_interrupt_all)
# A forked child leaves what its parent had begun to its parent.
os.register_at_fork(after_in_child=_open.clear)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}  # some built-in functions have none to show


def _tell() -> None:
    """Warn of the executions that could not be recorded.

    Raises:
        RecursionError: if there is not enough stack for that.
    """
    while _untold:
        recorder, traced, error = failure = _untold.pop()
        try:
            recorder.warn_once(
                f"tracing of {traced.name}",
                f"an execution of {traced.kind} {traced.name!r} could not be recorded ({type_name(error)}: "
                f"{message_of(error)}); it ran as if it were not decorated",
            )
        except RecursionError:
            _untold.append(failure)
            raise
