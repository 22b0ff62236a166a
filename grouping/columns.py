"""The rows that ingest writes, declared once: which columns, of which type, from which field.

`migrations/` says the same to DuckDB; a test holds the two against each other. Records
(everything in the spool that is not a span) are described by a table name and the body
fields that become columns; what has no column is kept as JSON in `rest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tracetune.tracer import names

TEXT = pa.string()
WHOLE = pa.int64()
REAL = pa.float64()
FLAG = pa.bool_()
TIME = pa.timestamp("ns")
TOKENS = pa.list_(pa.int32())
TEXTS = pa.list_(TEXT)

SPANS = pa.schema(
    [
        ("trace_id", TEXT),
        ("span_id", TEXT),
        ("parent_span_id", TEXT),
        ("name", TEXT),
        ("kind", TEXT),
        ("started_at", TIME),
        ("ended_at", TIME),
        ("status", TEXT),
        ("error_type", TEXT),
        ("run", TEXT),
        ("split", TEXT),
        ("step", WHOLE),
        ("rollout_id", TEXT),
        ("example_id", TEXT),
        ("policy_version", TEXT),
        ("module", TEXT),
        ("key", TEXT),
        ("execution", TEXT),
        ("recorded_invocation", WHOLE),
        ("recorded_turn", WHOLE),
        ("unordered", FLAG),
        ("late", FLAG),
        ("truncated", TEXTS),
        ("redacted", TEXTS),
        ("input", TEXT),
        ("output", TEXT),
        ("operation", TEXT),
        ("provider", TEXT),
        ("request_model", TEXT),
        ("response_model", TEXT),
        ("response_id", TEXT),
        ("input_tokens", WHOLE),
        ("output_tokens", WHOLE),
        ("choice_count", WHOLE),
        ("attributes", TEXT),
        ("events", TEXT),
        ("resource", TEXT),
        ("scope", TEXT),
    ]
)

# The attribute that a column of `spans` is read from, on a span of the tracer's.
SPAN_ATTRIBUTES = {
    "kind": names.KIND,
    "status": names.STATUS,
    "error_type": names.ERROR_TYPE,
    "run": names.RUN,
    "split": names.SPLIT,
    "step": names.STEP,
    "rollout_id": names.ROLLOUT_ID,
    "example_id": names.EXAMPLE_ID,
    "policy_version": names.POLICY_VERSION,
    "module": names.MODULE,
    "key": names.KEY,
    "execution": names.EXECUTION,
    "recorded_invocation": names.INVOCATION,
    "recorded_turn": names.TURN,
    "unordered": names.UNORDERED,
    "late": names.LATE,
    "truncated": names.TRUNCATED,
    "redacted": names.REDACTED,
    "input": names.INPUT,
    "output": names.OUTPUT,
    "operation": names.OPERATION,
    "provider": names.PROVIDER,
    "request_model": names.REQUEST_MODEL,
    "response_model": names.RESPONSE_MODEL,
    "response_id": names.RESPONSE_ID,
    "input_tokens": names.INPUT_TOKENS,
    "output_tokens": names.OUTPUT_TOKENS,
    "choice_count": names.CHOICE_COUNT,
}

# `call_rows` as a span alone can tell; the columns that need other rows are derived in SQL.
CALLS = pa.schema(
    [
        ("call_id", TEXT),
        ("span_id", TEXT),
        ("lm_parent", TEXT),
        ("rollout_id", TEXT),
        ("run", TEXT),
        ("split", TEXT),
        ("step", WHOLE),
        ("example_id", TEXT),
        ("module", TEXT),
        ("key", TEXT),
        ("execution", TEXT),
        ("recorded_invocation", WHOLE),
        ("recorded_turn", WHOLE),
        ("invocation", WHOLE),
        ("turn", WHOLE),
        ("choice", WHOLE),
        ("kind", TEXT),
        ("started_at", TIME),
        ("duration_ms", REAL),
        ("status", TEXT),
        ("model", TEXT),
        ("provider", TEXT),
        ("policy_version", TEXT),
        ("response_id", TEXT),
        ("messages", TEXT),
        ("completion", TEXT),
        ("finish_reason", TEXT),
        ("sampling", TEXT),
        ("input_tokens", WHOLE),
        ("output_tokens", WHOLE),
        ("unordered", FLAG),
        ("truncated", FLAG),
        ("redacted", FLAG),
        ("late", FLAG),
    ]
)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a record table.

    Attributes:
        name: in the table.
        type: in Arrow.
        field: of the record's body; the column's own name where it is not given.
        required: a record without it is set aside.
        json: the field is any JSON value, kept as its text.
    """

    name: str
    type: Any = TEXT
    field: str = ""
    required: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True)
class RecordTable:
    """Where the records of one event name go."""

    table: str
    columns: Sequence[Column]

    @property
    def schema(self) -> Any:
        """The table's columns in Arrow."""
        columns = [(column.name, column.type) for column in self.columns]
        return pa.schema([("record_id", TEXT), ("recorded_at", TIME), *columns, ("rest", TEXT)])


RECORDS = {
    names.RECORD_ROLLOUT: RecordTable(
        "rollout_starts",
        (
            Column("rollout_id", required=True),
            Column("run"),
            Column("split"),
            Column("step", WHOLE),
            Column("rollout_index", WHOLE, field="index"),
            Column("program"),
            Column("example_id"),
            Column("input", json=True),
            Column("policy_version"),
            Column("pid", WHOLE),
            Column("process"),
        ),
    ),
    names.RECORD_ROLLOUT_CLOSED: RecordTable(
        "rollout_ends",
        (
            Column("rollout_id", required=True),
            Column("status", required=True),
            Column("error_type"),
            Column("output", json=True),
        ),
    ),
    names.RECORD_COMPLETION: RecordTable(
        "completions",
        (
            Column("response_id"),
            Column("choice", WHOLE, required=True),
            Column("call_id"),
            Column("module"),
            Column("model"),
            Column("policy_version"),
            Column("prompt_token_ids", TOKENS),
            Column("completion_token_ids", TOKENS),
            Column("completion_logprobs", pa.list_(REAL)),
            Column("text"),
            Column("redacted", FLAG),
            Column("finish_reason"),
            Column("sampling", json=True),
            Column("started_at", TIME),
            Column("ended_at", TIME),
        ),
    ),
    names.RECORD_SCORE: RecordTable(
        "scores",
        (
            Column("rollout_id"),
            Column("call_id"),
            Column("module"),
            Column("name", required=True),
            Column("value", REAL, required=True),
            Column("source"),
            Column("feedback"),
        ),
    ),
    names.RECORD_POLICY: RecordTable(
        "policies",
        (
            Column("run"),
            Column("version", required=True),
            Column("step", WHOLE),
            Column("trainer"),
            Column("model"),
            Column("prompts", json=True),
        ),
    ),
    names.RECORD_JOB: RecordTable(
        "jobs",
        (
            Column("run"),
            Column("job_id", required=True),
            Column("provider"),
            Column("status"),
            Column("detail", json=True),
        ),
    ),
    names.RECORD_BATCH: RecordTable(
        "batches",
        (
            Column("run"),
            Column("step", WHOLE),
            Column("policy_version"),
            Column("members", json=True),
            Column("left_out", json=True),
            Column("report", json=True),
        ),
    ),
    names.RECORD_SUPERSEDE: RecordTable(
        "supersedes",
        (Column("run", required=True), Column("from_step", WHOLE, required=True)),
    ),
}
# Records of another name, whole: their attributes are in `rest`.
OTHER_RECORDS = RecordTable(
    "other_records", (Column("event_name"), Column("trace_id"), Column("span_id"), Column("body"))
)
