"""LM calls: the spans that adapters record.

An adapter begins a call before its request goes out, sends the call's headers with it,
and ends it with what came back. Which module a call belongs to was settled by the scope
it began in.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from tracetune.tracer import foreign, names, session, sources
from tracetune.tracer.interrupts import is_interrupt
from tracetune.tracer.messages import to_genai
from tracetune.tracer.outcomes import FAILED, message_of, record_failure, status_of
from tracetune.tracer.scope import (
    OpenCall,
    Scope,
    current_scope,
    enclosing_context,
    with_scope,
    with_scope_and_span,
)
from tracetune.tracer.spans import RecordedSpan
from tracetune.tracer.values import type_name
from tracetune.types import Call

_SAMPLING = {
    "temperature": names.TEMPERATURE,
    "top_p": names.TOP_P,
    "top_k": names.TOP_K,
    "max_tokens": names.MAX_TOKENS,
    "seed": names.SEED,
    "stop": names.STOP,
    "n": names.CHOICE_COUNT,
}

# The calls that are being made.
_open: set[weakref.ref[LMCall]] = set()


class Choice(NamedTuple):
    """One choice of a response.

    Attributes:
        message: the whole message in OpenAI's shape, where it is more than a text.
    """

    text: str
    finish_reason: str | None = None
    message: Mapping[str, Any] | None = None


class LMCall:
    """One request to a language model, from `begin` to `end` or `fail`.

    Attributes:
        id: the call's id, its span's in hexadecimal.
        module: whose call it is; None outside any program.

    Example:
        >>> call = LMCall.begin([{"role": "user", "content": "2 + 2?"}], model="policy")
        >>> call is None  # nothing records
        True
    """

    def __init__(
        self,
        recorder: session.Session,
        scope: Scope,
        here: Context,
        span: RecordedSpan | None,
        open_call: OpenCall,
    ) -> None:
        self.id = open_call.span_id
        self.module = scope.execution.module if scope.execution is not None else None
        self._recorder = recorder
        self._scope = scope
        self._here = here
        self._span = span
        self._open = open_call
        self._messages: list[dict[str, Any]] = []
        self._shortened: list[str] = []
        self._redacted: list[str] = []
        self._has_ended = False
        self._generation = sources.generation
        _open.add(weakref.ref(self, _open.discard))

    def __del__(self) -> None:
        """A call that nobody ended, a stream that was dropped say, is recorded all the same."""
        self._interrupt()

    @classmethod
    def begin(
        cls,
        messages: Sequence[Mapping[str, Any]],
        model: str = "",
        sampling: Mapping[str, Any] | None = None,
        provider: str = "openai",
        *,
        started_at: int | None = None,
        context: Context | None = None,
        is_made: bool = False,
    ) -> LMCall | None:
        """Begin a call in the scope that this is called in.

        Args:
            messages: the prompt in OpenAI's chat shape.
            model: its name as the program asks for it.
            sampling: what the program asks for: any of temperature, top_p, top_k,
                max_tokens, seed, stop and n; those that are None are left out.
            provider: whose API it is.
            started_at: nanoseconds since the epoch; now by default.
            context: where it is made; by default where this is called.
            is_made: it has been made already, so a rollout that was closed meanwhile has it recorded as late.

        Returns:
            The call, or None where nothing records.

        Raises:
            RolloutClosed: if the rollout was closed from outside.
        """
        recorder = session.active
        here = enclosing_context() if context is None else context
        scope = current_scope(recorder, here)
        if scope.rollout is not None and scope.call_kind == "call" and not is_made:
            scope.rollout.check_open()
        if recorder is None:
            return None
        try:
            return cls._begin(recorder, here, messages, model, sampling, provider, started_at)
        except BaseException as error:  # tracing must not raise into the program
            if is_interrupt(error):
                raise
            _complain(recorder, error)
            return None

    @classmethod
    def _begin(
        cls,
        recorder: session.Session,
        here: Context,
        messages: Sequence[Mapping[str, Any]],
        model: str,
        sampling: Mapping[str, Any] | None,
        provider: str,
        started_at: int | None,
    ) -> LMCall:
        scope = current_scope(recorder, here)
        if scope.rollout is not None and not scope.rollout.has_started:
            scope.rollout.start()
        is_kept = scope.rollout is None or scope.rollout.is_sampled
        parts = to_genai(messages) if is_kept else []
        turn = scope.next_turn()
        if not is_kept:
            call = cls(recorder, scope, here, None, OpenCall(f"{sources.span_id():016x}", turn))
            call._messages = [dict(message) for message in messages]
            return call
        attributes = scope.call_attributes()
        attributes[names.TURN] = turn
        enclosing = trace.get_current_span(here)
        if names.LM_PARENT not in attributes and foreign.is_lm_span(enclosing):
            attributes[names.LM_PARENT] = f"{enclosing.get_span_context().span_id:016x}"
        attributes[names.OPERATION] = "chat"
        attributes[names.PROVIDER] = provider
        attributes[names.REQUEST_MODEL] = model
        for name, value in (sampling or {}).items():
            if value not in (None, ()) and name in _SAMPLING:
                attributes[_SAMPLING[name]] = [value] if name == "stop" and isinstance(value, str) else value
        span = recorder.start_span(
            f"chat {model}",
            here,
            attributes,
            kind=SpanKind.CLIENT,
            start_time=started_at or sources.now(),
        )
        call = cls(recorder, scope, here, span, OpenCall(span.id, turn))
        call._capture(span, names.INPUT_MESSAGES, parts)
        call._messages = [dict(message) for message in messages]
        return call

    def headers(self) -> dict[str, str]:
        """The request headers by which a policy endpoint knows this call."""
        if self._span is None:
            return {}  # the endpoint's records would be claimed by no call
        headers = {names.HEADER_CALL: self.id}
        if self.module is not None and self.module.isascii() and self.module.isprintable():
            headers[names.HEADER_MODULE] = self.module
        return headers

    @property
    def context(self) -> Context:
        """Where the request is made: what other instrumentations see of it there belongs to this call."""
        scope = self._scope
        inner = Scope(scope.setting, scope.rollout, scope.executions, scope.execution, self._open, scope.call_kind)
        return (
            with_scope(inner, self._here) if self._span is None else with_scope_and_span(inner, self._span, self._here)
        )

    @property
    def is_alone(self) -> bool:
        """Whether it is being made, and no other instrumentation has reported it yet."""
        return not (self._has_ended or self._open.has_inner)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the request inside this block, in the call's context."""
        token = otel_context.attach(self.context)
        try:
            yield
        finally:
            otel_context.detach(token)

    def end(
        self,
        *,
        response_id: str | None = None,
        response_model: str | None = None,
        choices: Sequence[Choice | tuple[Any, ...]] = (),
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        error: BaseException | None = None,
        ended_at: int | None = None,
    ) -> None:
        """End the call with what came back; only the first end counts.

        Args:
            response_id: as the client received it.
            response_model: as the response names it.
            choices: in their order; plain tuples will do.
            input_tokens: of the prompt, as the response counts them.
            output_tokens: of all choices, likewise.
            error: what ended a stream before its time.
            ended_at: nanoseconds since the epoch; now by default.
        """
        if self._has_ended:
            return
        self._has_ended = True
        told = {
            names.RESPONSE_ID: response_id,
            names.RESPONSE_MODEL: response_model,
            names.INPUT_TOKENS: input_tokens,
            names.OUTPUT_TOKENS: output_tokens,
        }
        attributes = {name: value for name, value in told.items() if value is not None}
        try:
            self._end(attributes, [Choice(*choice) for choice in choices], error, ended_at)
        except BaseException as failure:  # tracing must not raise into the program
            if is_interrupt(failure):
                raise
            _complain(self._recorder, failure)

    def _end(
        self,
        attributes: dict[str, Any],
        choices: Sequence[Choice],
        error: BaseException | None,
        ended_at: int | None,
    ) -> None:
        scope, rollout = self._scope, self._scope.rollout
        if self._generation != sources.generation:
            return  # it began in the process that this one was forked from, and ends there
        is_late = rollout is not None and rollout.is_late(scope.call_kind)
        if self._span is not None:
            self._close(self._span, attributes, choices, error, ended_at)
        if rollout is not None and not is_late and scope.call_kind == "call" and not self._open.has_inner:
            response_id = attributes.get(names.RESPONSE_ID)
            rollout.calls.extend(self._calls(rollout.id, response_id, choices, status_of(error)))

    def _close(
        self,
        span: RecordedSpan,
        attributes: dict[str, Any],
        choices: Sequence[Choice],
        error: BaseException | None,
        ended_at: int | None,
    ) -> None:
        scope = self._scope
        if choices:
            self._capture(span, names.OUTPUT_MESSAGES, [_output_message(choice) for choice in choices])
        if any(choice.finish_reason for choice in choices):
            attributes[names.FINISH_REASONS] = [choice.finish_reason or "" for choice in choices]
        if error is not None:
            record_failure(span, error, attributes, self._recorder.capture)
        if self._shortened:
            attributes[names.TRUNCATED] = self._shortened
        if self._redacted:
            attributes[names.REDACTED] = self._redacted
        if scope.execution is not None and scope.execution.is_unordered:
            attributes[names.UNORDERED] = True
        if scope.rollout is not None and scope.rollout.is_late(scope.call_kind):
            attributes[names.LATE] = True
        span.set_attributes(attributes)
        span.end(ended_at or sources.now())

    def _interrupt(self) -> None:
        if self._has_ended or self._span is None or self._generation != sources.generation:
            return
        self._has_ended = True
        try:
            self._span.set_status(FAILED)
            self._close(self._span, {names.ERROR_TYPE: "interrupted"}, (), None, None)
        except BaseException as failure:  # as in `end`
            if is_interrupt(failure):
                raise
            _complain(self._recorder, failure)

    def fail(self, error: BaseException) -> None:
        """End a call that brought nothing back but an exception."""
        self.end(error=error)

    def unreadable(self, error: Exception) -> None:
        """Warn, once in a recording, that what came back is not as the adapter knows it; the program has it anyhow."""
        _complain(self._recorder, error)

    def _capture(self, span: RecordedSpan, attribute: str, messages: list[dict[str, Any]]) -> None:
        kept = self._recorder.capture.messages(messages)
        if kept.is_cut:
            self._shortened.append(attribute)
        if kept.is_redacted:
            self._redacted.append(attribute)
        span.set_attribute(attribute, kept.text)

    def _calls(
        self, rollout_id: str, response_id: str | None, choices: Sequence[Choice], status: str
    ) -> Iterator[Call]:
        execution = self._scope.execution
        for index, choice in enumerate(choices or [Choice("")]):
            yield Call(
                call_id=self.id if index == 0 else f"{self.id}.{index}",
                rollout_id=rollout_id,
                module=execution.module if execution is not None else "",
                key=execution.key if execution is not None else "",
                invocation=execution.invocation if execution is not None else 0,
                turn=self._open.turn,
                choice=index,
                messages=tuple(self._messages),
                completion=choice.text,
                finish_reason=choice.finish_reason,
                response_id=response_id,
                status=status,
            )


def _output_message(choice: Choice) -> dict[str, Any]:
    message = choice.message or {"role": "assistant", "content": choice.text}
    (converted,) = to_genai([message])
    if choice.finish_reason is not None:
        converted["finish_reason"] = choice.finish_reason
    return converted


def _complain(recorder: session.Session, error: BaseException) -> None:
    recorder.warn_once(
        "calls",
        f"an LM call could not be recorded ({type_name(error)}: {message_of(error)}); the program went on without",
    )


def _interrupt_all() -> None:
    for reference in list(_open):
        call = reference()
        if call is not None:
            call._interrupt()


# Runs before the spool closes, which was imported earlier.
atexit.register(_interrupt_all)
