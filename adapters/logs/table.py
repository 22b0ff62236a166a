"""Tables: one row a call, from CSV, JSON lines or Parquet, with the columns named by whoever imports.

Rows that share a `rollout_id` are one rollout; a row without one is a rollout of its own,
whose example is its prompt unless a column says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from tracetune.adapters.formats import DEFAULTS, FormatOptions, Line, Refused
from tracetune.adapters.logs.chat import answers_of, messages_of
from tracetune.adapters.logs.lines import LoggedSpan, call_attributes, score_line
from tracetune.adapters.logs.objects import objects
from tracetune.adapters.logs.values import dumped, example_of, nanoseconds, span_hex, trace_hex
from tracetune.errors import InvalidInput
from tracetune.tracer import names

_STAMPS = {
    "run": names.RUN,
    "split": names.SPLIT,
    "step": names.STEP,
    "rollout_id": names.ROLLOUT_ID,
    "example_id": names.EXAMPLE_ID,
    "policy_version": names.POLICY_VERSION,
    "module": names.MODULE,
    "key": names.KEY,
    "invocation": names.INVOCATION,
    "turn": names.TURN,
}
_WHOLES = ("step", "invocation", "turn")
COLUMNS = (
    *("messages", "prompt", "completion", "reward", *_STAMPS, "started_at", "model", "finish_reason", "response_id"),
    *("temperature", "input_tokens", "output_tokens"),
)
"""What a column may hold."""


def read(file: BinaryIO, options: FormatOptions = DEFAULTS) -> Iterator[Line | Refused]:
    """The calls and rewards of a file, and what in it cannot be read.

    Raises:
        InvalidInput: if a column is mapped to something that no call has.
    """
    if unknown := sorted(options.columns.keys() - set(COLUMNS)):
        raise InvalidInput(f"a call has no {unknown[0]!r} that a column could hold; it has {', '.join(COLUMNS)}")
    for number, found in enumerate(objects(file, tables=True)):
        if isinstance(found, Refused):
            yield found
            continue
        place, row = found
        try:
            yield from _row(row, number, options)
        except (ValueError, TypeError) as error:
            yield Refused(place, str(error))


def _row(row: Mapping[str, Any], number: int, options: FormatOptions) -> list[Line]:
    said: dict[str, Any] = {}
    for name in COLUMNS:
        column = options.columns.get(name, name)
        if row.get(column) is not None:
            said[name] = row[column]
    messages = messages_of(said.get("messages", said.get("prompt")))
    answers = answers_of(said.get("completion"))
    if messages is None or not answers:
        missing = "prompt (messages or prompt)" if messages is None else "completion"
        raise ValueError(f"it has no {missing}; its columns are {', '.join(row)}: name yours with --column")
    identity = dumped([said.get("rollout_id"), said])
    rollout = str(said.get("rollout_id") or trace_hex(identity))
    # A row without a time stands where the table has it.
    started = nanoseconds(said["started_at"]) if "started_at" in said else number * 1000
    execution = (
        identity if "turn" not in said else dumped([rollout, *(said.get(n) for n in ("module", "key", "invocation"))])
    )
    span = LoggedSpan(
        trace=rollout,
        id=identity,
        parent=None,
        name=f"chat {said.get('model') or ''}".strip(),
        kind="lm",
        started_at=started,
        ended_at=started,
        attributes=call_attributes(
            messages,
            answers[:1],
            model=said.get("model"),
            sampling={"temperature": float(said["temperature"])} if "temperature" in said else None,
            input_tokens=_number(said.get("input_tokens")),
            output_tokens=_number(said.get("output_tokens")),
            response_id=said.get("response_id"),
        )
        | ({names.FINISH_REASONS: [str(said["finish_reason"])]} if "finish_reason" in said else {})
        | {names.MODULE: "program", names.EXECUTION: span_hex(execution), names.ROLLOUT_ID: trace_hex(rollout)}
        | ({names.EXAMPLE_ID: example_of(messages)} if "rollout_id" not in said else {})
        | {
            attribute: int(said[name]) if name in _WHOLES else str(said[name])
            for name, attribute in _STAMPS.items()
            if name in said and name != "rollout_id"
        },
    )
    lines = [span.line()]
    if "reward" in said:
        reward = said["reward"]
        value = reward if isinstance(reward, int | float) else float(str(reward))
        lines.append(score_line(rollout, "reward", value, source="import", record=identity, time=started))
    return lines


def _number(value: Any) -> int | None:
    return None if value is None else int(float(value))
