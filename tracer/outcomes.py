"""How spans end: ok, or with the exception that ended them."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, Status, StatusCode

from tracetune.errors import FormatError
from tracetune.tracer import names, sources
from tracetune.tracer.capture import VALUE_LIMIT
from tracetune.tracer.interrupts import is_interrupt
from tracetune.tracer.values import type_name

if TYPE_CHECKING:
    from tracetune.tracer.capture import Capture

FAILED = Status(StatusCode.ERROR)

_format_errors: tuple[type[BaseException], ...] = (FormatError,)


def error_type(error: BaseException) -> str:
    """The qualified name of an exception's type: `ValueError`, `tracetune.errors.FormatError`."""
    # A metaclass may raise at whatever it is asked, so that it is not asked.
    kind = type(error)
    name = type.__dict__["__qualname__"].__get__(kind)
    module = type.__dict__["__module__"].__get__(kind)
    return name if module == "builtins" else f"{module}.{name}"


def status_of(error: BaseException | None) -> str:
    """The status of a rollout or a span that ended with this exception, or without one."""
    if error is None:
        return "ok"
    return "format_error" if issubclass(type(error), _format_errors) else "error"


def count_as_format_error(kind: type[BaseException]) -> Callable[[], None]:
    """From now on, count a framework's exception as a completion of the wrong form; gives what undoes that."""
    global _format_errors
    _format_errors = (*_format_errors, kind)

    def undo() -> None:
        global _format_errors
        _format_errors = tuple(other for other in _format_errors if other is not kind)

    return undo


def record_failure(span: Span, error: BaseException, attributes: dict[str, Any], capture: Capture) -> None:
    """Say in a span, and in the attributes it is about to be given, why it failed."""
    attributes[names.STATUS] = status_of(error)
    attributes[names.ERROR_TYPE] = error_type(error)
    span.set_status(FAILED)
    event = exception_event(error)
    kept = {
        "exception.type": capture.text(event["exception.type"], VALUE_LIMIT),
        # The beginning of a message says most, which may quote all that failed, and so does the end of a stack trace.
        "exception.message": capture.exception_text(event["exception.message"]),
        "exception.stacktrace": _ending(event["exception.stacktrace"], capture),
    }
    span.add_event("exception", kept, sources.now())


def _ending(stacktrace: str, capture: Capture) -> str:
    # More than is kept of it is searched: a secret that is cut in two looks like none.
    return capture.exception_text(stacktrace[-2 * VALUE_LIMIT :], 2 * VALUE_LIMIT)[-VALUE_LIMIT:]


def exception_event(error: BaseException) -> dict[str, str]:
    """The attributes of the event by which a span shows an exception, as the conventions name them."""
    return {
        "exception.type": error_type(error),
        "exception.message": message_of(error),
        "exception.stacktrace": _stacktrace(error),
    }


def message_of(error: BaseException) -> str:
    """What an exception says; a mark in its place where asking it fails."""
    try:
        return str(error)
    except BaseException as raised:  # an exception may fail to speak for itself
        if is_interrupt(raised):
            raise
        return f"<no message: {type_name(raised)}>"


def _stacktrace(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as raised:
        if is_interrupt(raised):
            raise
        return f"<no stack trace: {type_name(raised)}>"
