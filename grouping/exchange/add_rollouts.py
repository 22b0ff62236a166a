"""Rollouts that no tracer saw, as values: for tests, and for logs of another kind.

They are written to the spool as the tracer would have written them, so that they come
into the store by the same door and mean the same there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from tracetune.errors import InvalidInput
from tracetune.redaction import redacted_value
from tracetune.tracer import encoding, names, sources
from tracetune.tracer.messages import to_genai
from tracetune.tracer.spool import Spool
from tracetune.types import Sampling

Status = Literal["ok", "error", "format_error", "timeout", "interrupted"]


class CallRow(BaseModel):
    """One LM completion of a rollout; the fields are columns of the view `calls`.

    Invocations and turns that are not given follow the order of the list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    module: str
    key: str = ""
    invocation: int | None = Field(default=None, ge=0)
    turn: int | None = Field(default=None, ge=0)
    choice: int = Field(default=0, ge=0)
    kind: Literal["call", "score"] = "call"
    status: Literal["ok", "error"] = "ok"
    messages: Sequence[Mapping[str, Any]] = ()
    completion: str | None = None
    finish_reason: str | None = None
    response_id: str | None = None
    model: str | None = None
    sampling: Sampling = Sampling()
    prompt_token_ids: Sequence[int] | None = None
    completion_token_ids: Sequence[int] | None = None
    completion_logprobs: Sequence[FiniteFloat] | None = None
    policy_version: str | None = None
    reward: FiniteFloat | None = None

    @model_validator(mode="after")
    def _check_tokens(self) -> CallRow:
        tokens, logprobs = self.completion_token_ids, self.completion_logprobs
        if (tokens is None) != (self.prompt_token_ids is None):
            raise ValueError("prompt_token_ids and completion_token_ids are both known or both not")
        if logprobs is not None and (tokens is None or len(tokens) != len(logprobs)):
            raise ValueError("completion_logprobs has one number for each of completion_token_ids")
        return self


class RolloutRow(BaseModel):
    """One execution of a program; the fields are columns of the view `rollouts`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    example_id: str
    id: str = Field(default_factory=sources.new_id)
    run: str | None = None
    split: str | None = None
    step: int | None = None
    index: int = Field(default=0, ge=0)
    program: str = "program"
    input: Any = None
    output: Any = None
    status: Status = "ok"
    error_type: str | None = None
    reward: FiniteFloat | None = None
    policy_version: str | None = None
    calls: Sequence[CallRow] = ()


def write_rollouts(spool: Spool, rollouts: Iterable[RolloutRow | Mapping[str, Any]]) -> list[str]:
    """Write rollouts to a spool as the tracer would have; gives their ids.

    Raises:
        InvalidInput: if one of them is not a rollout; none is written then.
    """
    rows = [_checked(rollout, number) for number, rollout in enumerate(rollouts)]
    requests = [_requests(row, number) for number, row in enumerate(rows)]
    for row, asked in zip(rows, requests, strict=True):
        _Writer(spool, row).write(asked)
    return [row.id for row in rows]


@dataclass(slots=True)
class _Request:
    """The choices of one request, and where it stands in its rollout."""

    invocation: int
    turn: int
    choices: list[CallRow]

    @property
    def execution(self) -> tuple[str, str, str, int]:
        """What names the execution that made it."""
        first = self.choices[0]
        return first.kind, first.module, first.key, self.invocation


def _checked(rollout: RolloutRow | Mapping[str, Any], number: int) -> RolloutRow:
    try:
        return rollout if isinstance(rollout, RolloutRow) else RolloutRow.model_validate(rollout)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the row"
        raise InvalidInput(f"rollout {number} cannot be added: {place}: {first['msg']}") from error


def _requests(row: RolloutRow, number: int) -> list[_Request]:
    """The rollout's requests in order; a call with choice 1 and up belongs to the request before it."""
    requests: list[_Request] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    turns: Counter[tuple[str, str, str, int]] = Counter()
    for place, call in enumerate(row.calls):
        if call.choice:
            before = requests[-1].choices if requests else []
            if len(before) != call.choice or _question(before[0]) != _question(call):
                raise InvalidInput(
                    f"rollout {number} cannot be added: call {place} is choice {call.choice} of a request "
                    f"whose choice {call.choice - 1} does not stand before it"
                )
            before.append(call)
            continue
        module = (call.kind, call.module, call.key)
        invocation = seen[module] if call.invocation is None else call.invocation
        seen[module] = max(seen[module], invocation + 1)
        turn = turns[*module, invocation] if call.turn is None else call.turn
        turns[*module, invocation] = turn + 1
        requests.append(_Request(invocation, turn, [call]))
    return requests


def _question(call: CallRow) -> tuple[Any, ...]:
    return call.kind, call.module, call.key, call.messages, call.response_id, call.model, call.sampling


class _Writer:
    """Writes one rollout: start, spans from the inside out, completions, end, scores."""

    def __init__(self, spool: Spool, row: RolloutRow) -> None:
        self._spool = spool
        self._row = row
        self._trace_id = sources.trace_id()
        self._time = sources.now()
        scope = {
            names.RUN: row.run,
            names.SPLIT: row.split,
            names.STEP: row.step,
            names.ROLLOUT_ID: row.id,
            names.EXAMPLE_ID: row.example_id,
            names.POLICY_VERSION: row.policy_version,
        }
        self._scope = {name: value for name, value in scope.items() if value is not None}

    def write(self, requests: Sequence[_Request]) -> None:
        """Write it."""
        row = self._row
        start = row.model_dump(include={"run", "split", "step", "index", "program", "example_id", "policy_version"})
        self._record(names.RECORD_ROLLOUT, {"rollout_id": row.id, **start, "input": redacted_value(row.input)})
        program_id, started_at = sources.span_id(), self._tick()
        executions: dict[tuple[str, str, str, int], int] = {}
        for request in requests:
            execution = executions.setdefault(request.execution, sources.span_id())
            self._write_request(request, execution)
        for (kind, module, key, invocation), execution in executions.items():
            stamps = {names.KIND: "module", names.CALL_KIND: kind, **_place(module, key, execution, invocation)}
            self._span(module, execution, program_id, started_at, self._tick(), stamps)
        if row.status == "interrupted":
            return  # which is what the lack of an end says
        stamps = {names.KIND: "program", names.INPUT: _json(row.input), names.OUTPUT: _json(row.output)}
        self._span(row.program, program_id, None, started_at, self._tick(), stamps, row.status, row.error_type)
        output = redacted_value(row.output)
        closed = {"rollout_id": row.id, "status": row.status, "error_type": row.error_type, "output": output}
        self._record(names.RECORD_ROLLOUT_CLOSED, closed)
        if row.reward is not None:
            self._score(row.reward, None)

    def _write_request(self, request: _Request, execution: int) -> None:
        first, started_at, span_id = request.choices[0], self._tick(), sources.span_id()
        sampling = first.sampling
        stamps = {
            names.KIND: "lm",
            names.OPERATION: "chat",
            names.CALL_KIND: first.kind,
            **_place(first.module, first.key, execution, request.invocation),
            names.TURN: request.turn,
            names.REQUEST_MODEL: first.model,
            names.RESPONSE_ID: first.response_id,
            names.POLICY_VERSION: first.policy_version,
            names.INPUT_MESSAGES: _json(to_genai(first.messages)),
            names.OUTPUT_MESSAGES: _json([_output(choice) for choice in request.choices]),
            names.TEMPERATURE: sampling.temperature,
            names.TOP_P: sampling.top_p,
            names.TOP_K: sampling.top_k,
            names.MAX_TOKENS: sampling.max_tokens,
            names.SEED: sampling.seed,
            names.STOP: sampling.stop or None,
        }
        for number, choice in enumerate(request.choices):
            call_id = f"{span_id:016x}" + (f".{number}" if number else "")
            if choice.completion_token_ids is not None:
                self._record(names.RECORD_COMPLETION, _completion(choice, f"{span_id:016x}", number, self._row))
            if choice.reward is not None:
                self._score(choice.reward, call_id)
        self._span(
            f"chat {first.model or ''}".strip(), span_id, execution, started_at, self._tick(), stamps, first.status
        )

    def _score(self, value: float, call_id: str | None) -> None:
        score = {"rollout_id": self._row.id, "call_id": call_id, "name": "reward", "value": value, "source": "user"}
        self._record(names.RECORD_SCORE, score)

    def _record(self, event_name: str, body: Mapping[str, Any]) -> None:
        self._spool.write_record(event_name, body, attributes=self._scope)

    def _span(
        self,
        name: str,
        span_id: int,
        parent_id: int | None,
        started_at: int,
        ended_at: int,
        stamps: Mapping[str, Any],
        status: str = "ok",
        error_type: str | None = None,
    ) -> None:
        said = {**self._scope, **{key: value for key, value in stamps.items() if value is not None}}
        if status != "ok":
            said[names.STATUS] = status
        if error_type is not None:
            said[names.ERROR_TYPE] = error_type
        self._spool.write_span(
            ReadableSpan(
                name,
                context=_context(self._trace_id, span_id),
                parent=_context(self._trace_id, parent_id) if parent_id is not None else None,
                attributes=said,
                start_time=started_at,
                end_time=ended_at,
                instrumentation_scope=InstrumentationScope(encoding.SCOPE_NAME),
                # One that is not given is detected anew for every span, which takes a millisecond.
                resource=Resource.get_empty(),
            )
        )

    def _tick(self) -> int:
        self._time += 1_000
        return self._time


def _place(module: str, key: str, execution: int, invocation: int) -> dict[str, Any]:
    return {
        names.MODULE: module,
        names.KEY: key,
        names.EXECUTION: f"{execution:016x}",
        names.INVOCATION: invocation,
    }


def _output(choice: CallRow) -> dict[str, Any]:
    parts = [] if choice.completion is None else [{"type": "text", "content": choice.completion}]
    return {"role": "assistant", "parts": parts, "finish_reason": choice.finish_reason}


def _completion(choice: CallRow, call_id: str, number: int, row: RolloutRow) -> dict[str, Any]:
    fields = {
        "module", "model", "response_id", "prompt_token_ids", "completion_token_ids", "completion_logprobs",
        "finish_reason", "sampling",
    }  # fmt: skip
    return {
        **choice.model_dump(mode="json", include=fields),
        "choice": number,
        "call_id": call_id,
        "text": choice.completion,
        "policy_version": choice.policy_version or row.policy_version,
    }


def _context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False)


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value, default=str).decode()
