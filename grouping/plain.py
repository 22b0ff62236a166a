"""The quick way into the store for the tracer's own lines: DuckDB reads them itself.

Nearly every line is one span of ours whose attributes all have a column and whose
messages are plain text, or a record that every rollout has. A process begins all its
lines alike, so what stands around the span or record is only compared, and DuckDB reads
the rest: `sql/decode_spans.sql` turns it into rows on every core, several times faster
than Python can. Whatever it does not take, `otlp.decode` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from string import Template
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tracetune.grouping import schema
from tracetune.grouping.plain_records import PLAIN_RECORDS, decode_plain_records
from tracetune.grouping.rows import CALLS, RECORDS, SPANS
from tracetune.tracer import encoding, names

if TYPE_CHECKING:
    import duckdb

# DuckDB reads each batch on one thread.
_BATCH_LINES = 2048
_LINES = pa.schema([("number", pa.uint64()), ("line", pa.string())])

_TEXTS = {
    "kind": names.KIND,
    "run": names.RUN,
    "split": names.SPLIT,
    "rollout_id": names.ROLLOUT_ID,
    "example_id": names.EXAMPLE_ID,
    "policy_version": names.POLICY_VERSION,
    "module": names.MODULE,
    "key": names.KEY,
    "execution": names.EXECUTION,
    "lm_parent": names.LM_PARENT,
    "call_kind": names.CALL_KIND,
    "status": names.STATUS,
    "error_type": names.ERROR_TYPE,
    "input": names.INPUT,
    "output": names.OUTPUT,
    "operation": names.OPERATION,
    "provider": names.PROVIDER,
    "request_model": names.REQUEST_MODEL,
    "response_model": names.RESPONSE_MODEL,
    "response_id": names.RESPONSE_ID,
    "input_messages": names.INPUT_MESSAGES,
    "output_messages": names.OUTPUT_MESSAGES,
}
_WHOLES = {
    "step": names.STEP,
    "recorded_invocation": names.INVOCATION,
    "recorded_turn": names.TURN,
    "input_tokens": names.INPUT_TOKENS,
    "output_tokens": names.OUTPUT_TOKENS,
    "choice_count": names.CHOICE_COUNT,
    "top_k": names.TOP_K,
    "max_tokens": names.MAX_TOKENS,
    "seed": names.SEED,
}
_REALS = {"temperature": names.TEMPERATURE, "top_p": names.TOP_P}
_FLAGS = {"unordered": names.UNORDERED, "late": names.LATE}
_LISTS = {"truncated": names.TRUNCATED, "finish_reasons": names.FINISH_REASONS, "stop": names.STOP}
# Only an LM span has a column for these.
_OF_CALLS = {
    "lm_parent",
    "call_kind",
    "input_messages",
    "output_messages",
    "top_k",
    "max_tokens",
    "seed",
    "temperature",
    "top_p",
    "finish_reasons",
    "stop",
}

_VALUE = (
    '{"stringValue": "VARCHAR", "intValue": "BIGINT", "doubleValue": "DOUBLE", "boolValue": "BOOLEAN", '
    '"arrayValue": {"values": [{"stringValue": "VARCHAR"}]}}'
)
_SPAN = (
    '{"traceId": "VARCHAR", "spanId": "VARCHAR", "parentSpanId": "VARCHAR", "name": "VARCHAR", '
    '"startTimeUnixNano": "BIGINT", "endTimeUnixNano": "BIGINT", '
    f'"attributes": [{{"key": "VARCHAR", "value": {_VALUE}}}], "events": "VARCHAR", "links": "JSON", '
    '"status": {"code": "VARCHAR", "message": "VARCHAR"}}'
)
# What stands around the one span, or the one record, of a line.
_SPAN_OPENING_END = f'"scope":{{"name":"{encoding.SCOPE_NAME}"}},"spans":['.encode()
_RECORD_OPENING = b"".join(encoding.record_line("", {}, {}, 0).partition(b'"logRecords":[')[:2])
_CLOSING = b"]}]}]}"

# The tables whose rows come this way, with their columns; what was read of a text is in `plain_<table>`.
PLAIN_TABLES = {
    "spans": SPANS.names,
    "call_rows": CALLS.names,
    **{RECORDS[event].table: RECORDS[event].schema.names for event in PLAIN_RECORDS},
}

_TAKEN = " UNION ALL ".join(f"SELECT number FROM plain_{table}" for table in PLAIN_TABLES if table != "call_rows")  # noqa: S608  our own names


def decode_plain(
    connection: duckdb.DuckDBPyConnection, text: bytes | memoryview, start: int = 0
) -> list[tuple[int, bytes]]:
    """Read the plain lines into a temporary `plain_<table>` for each of `PLAIN_TABLES`.

    Args:
        connection: where the tables are to be.
        text: whole lines.
        start: the offset of the text in its segment.

    Returns:
        The other lines, with their offsets.
    """
    ends = pa.array([0, len(text)], pa.int32()).buffers()[1]
    whole = pa.BinaryArray.from_buffers(pa.binary(), 1, [None, ends, pa.py_buffer(text)])
    lines = pc.split_pattern(whole, b"\n").values
    opening, resource = _span_opening(lines)
    connection.register("lines", pa.RecordBatchReader.from_batches(_LINES, _batches(lines, opening)))
    connection.execute(_decode_sql(), {"resource": resource})
    connection.execute(schema.script("decode_calls.sql"))
    connection.register("lines", pa.RecordBatchReader.from_batches(_LINES, _batches(lines, _RECORD_OPENING)))
    decode_plain_records(connection)
    connection.unregister("lines")
    numbers = connection.execute(_TAKEN).to_arrow_table()["number"]
    is_other = pc.invert(pc.is_in(pa.array(range(len(lines)), pa.uint64()), numbers))
    lengths = pc.binary_length(lines)
    offsets = pc.subtract(pc.cumulative_sum(pc.add(lengths, 1)), lengths).filter(is_other)
    return [
        (start + offset - 1, line)
        for offset, line in zip(offsets.to_pylist(), lines.filter(is_other).to_pylist(), strict=True)
        if line
    ]


def _span_opening(lines: Any) -> tuple[bytes, str | None]:
    """What stands before the span in the lines of a segment, and the resource in it.

    One process has one resource, so this is read once, of its first span, and only
    compared on the others.
    """
    for line in lines:
        before, end, _ = line.as_py().partition(_SPAN_OPENING_END)
        try:
            document = orjson.loads(before + end + _CLOSING)
        except orjson.JSONDecodeError:
            continue
        match document:
            case {"resourceSpans": [{"scopeSpans": [{"spans": []}]} as only], **others} if not others:
                resource = only.get("resource")
                return before + end, orjson.dumps(resource).decode() if resource else None
    return _SPAN_OPENING_END, None  # with which no document begins


def _batches(lines: Any, opening: bytes) -> Iterator[Any]:
    """What stands between that opening and the closing of a line, with the line's number."""
    for first in range(0, len(lines), _BATCH_LINES):
        batch = lines.slice(first, _BATCH_LINES)
        is_such = pc.and_(pc.starts_with(batch, opening), pc.ends_with(batch, _CLOSING))
        numbers = pc.add(pc.indices_nonzero(is_such), pa.scalar(first, pa.uint64()))
        texts = _texts(pc.binary_slice(batch.filter(is_such), len(opening), -len(_CLOSING)))
        yield pa.record_batch([numbers, texts], schema=_LINES)


def _texts(lines: Any) -> Any:
    """The lines as texts; one that is not UTF-8 is empty there."""
    try:
        return lines.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array([line.decode() if _is_utf8(line) else "" for line in lines.to_pylist()], type=pa.string())


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@cache
def _decode_sql() -> str:
    values = {
        **{column: f"texts[{_place(name)}]" for column, name in _TEXTS.items()},
        **{column: f"wholes[{_place(name)}]" for column, name in _WHOLES.items()},
        **{column: f"coalesce(reals[{_place(name)}], wholes[{_place(name)}])" for column, name in _REALS.items()},
        **{column: f"flags[{_place(name)}]" for column, name in _FLAGS.items()},
        **{
            column: f"list_transform(arrays[{_place(name)}], lambda item: item.stringValue)"
            for column, name in _LISTS.items()
        },
    }
    for column in _OF_CALLS:
        values[column] = f"CASE WHEN {values['kind']} = 'lm' THEN {values[column]} END"
    return Template(schema.script("decode_spans.sql")).substitute(
        shape=_SPAN,
        columns=",\n           ".join(f"{value} AS {column}" for column, value in values.items()),
        n_taken=" + ".join(f"({column} IS NOT NULL)::INTEGER" for column in values),
    )


def _place(name: str) -> str:
    return f"list_position(names, '{name}')"
