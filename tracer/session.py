"""What the recordings to one store have in common: the spool, and how values and spans reach it.

A process has at most one session, since its spans have one home.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from tracetune.tracer import encoding
from tracetune.tracer.capture import Capture, Redact
from tracetune.tracer.interrupts import is_interrupt
from tracetune.tracer.outcomes import message_of
from tracetune.tracer.paths import spool_folder
from tracetune.tracer.spans import RecordedSpan
from tracetune.tracer.spool import Spool
from tracetune.tracer.values import type_name
from tracetune.tracer.warn import warn

# The session that is on, if any. Read without a lock at every decorated call.
active: Session | None = None

_INSTRUMENTATION = InstrumentationScope(encoding.SCOPE_NAME)


class Session:
    """What the recordings to one store have in common while they last."""

    def __init__(self, store: Path, processors: Sequence[SpanProcessor], redact: Redact | None) -> None:
        self.store = store
        self.spool = Spool(spool_folder(store))
        self.capture = Capture(redact)
        self.redact = redact
        self.processors = tuple(processors)
        self.depth = 0
        self._resource = Resource.create()
        self._warned: set[str] = set()

    def start_span(
        self, name: str, parent_context: Context, attributes: dict[str, Any], *, kind: SpanKind, start_time: int
    ) -> RecordedSpan:
        """Open a span under the one that is current in a context."""
        span = RecordedSpan(
            name,
            parent=trace.get_current_span(parent_context).get_span_context(),
            kind=kind,
            attributes=attributes,
            start_time=start_time,
            resource=self._resource,
            instrumentation_scope=_INSTRUMENTATION,
            ended=self._ended,
        )
        for processor in self.processors:
            try:
                processor.on_start(span, parent_context)  # type: ignore[arg-type]  # the SDK's class, by its name
            except BaseException as error:  # a backend's trouble is not the program's
                if is_interrupt(error):
                    raise
                self._complain(processor, error)
        return span

    def _ended(self, span: RecordedSpan) -> None:
        self.spool.write_span(span)
        for processor in self.processors:
            try:
                processor.on_end(span)
            except BaseException as error:  # as above
                if is_interrupt(error):
                    raise
                self._complain(processor, error)

    def flush_processors(self) -> None:
        """Let the user's processors send what they hold; they stay open, being the user's."""
        for processor in self.processors:
            try:
                processor.force_flush()
            except BaseException as error:  # as above
                if is_interrupt(error):
                    raise
                self._complain(processor, error)

    def _complain(self, processor: SpanProcessor, error: BaseException) -> None:
        kind = type(processor).__name__
        self.warn_once(
            kind, f"the span processor {kind} raised {type_name(error)} ({message_of(error)}); it misses spans"
        )

    def warn_once(self, subject: str, message: str) -> None:
        """Warn of one subject once in the life of this session."""
        if subject not in self._warned:
            self._warned.add(subject)
            try:
                warn(message)
            except BaseException:  # an interrupt, or too little stack: it has not been told
                self._warned.discard(subject)
                raise


def _end_with_process() -> None:
    """Close what is still recorded into: executions that are open have been written by now."""
    session = active
    if session is not None:
        session.spool.close()
        session.flush_processors()


# Before `executions` and `calls` register what must run earlier, which the last one registered does.
atexit.register(_end_with_process)
