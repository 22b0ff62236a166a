"""The quick way into the store for the tracer's own lines: DuckDB reads them itself.

Nearly every line is one span of ours whose attributes all have a column and whose
messages are plain text. `sql/decode_spans.sql` turns those into rows on every core,
several times faster than Python can; whatever it does not take, `otlp.decode` does.
"""

from __future__ import annotations

from array import array
from functools import cache
from itertools import accumulate
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tracetune.grouping import schema
from tracetune.tracer import names

if TYPE_CHECKING:
    import duckdb

# DuckDB reads each batch of an Arrow table on one thread.
_BATCH_LINES = 2048

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
_SHAPE = (
    '{"resourceSpans": [{"resource": "JSON", "scopeSpans": [{"scope": {"name": "VARCHAR"}, '
    f'"spans": [{_SPAN}]}}]}}]}}'
)


def decode_plain(connection: duckdb.DuckDBPyConnection, lines: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Read the plain lines into the temporary tables `plain_spans` and `plain_calls`; gives the other lines."""
    table = pa.table({"number": pa.array(range(len(lines)), type=pa.int64()), "line": _texts(lines)})
    connection.register("lines", pa.Table.from_batches(table.to_batches(max_chunksize=_BATCH_LINES)))
    connection.execute(_decode_sql())
    connection.execute(schema.script("decode_calls.sql"))
    connection.unregister("lines")
    taken = connection.execute("SELECT number FROM plain_spans").fetchnumpy()["number"].tolist()
    others = set(range(len(lines))).difference(taken)
    return [lines[number] for number in sorted(others)]


def _texts(lines: list[tuple[int, bytes]]) -> Any:
    """The lines as one Arrow column; a line that is not UTF-8 is empty there."""
    ends = array("i", accumulate((len(line) for _, line in lines), initial=0))
    texts = pa.StringArray.from_buffers(
        len(lines), pa.py_buffer(ends), pa.py_buffer(b"".join(line for _, line in lines))
    )
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return pa.array([line.decode() if _is_utf8(line) else "" for _, line in lines], type=pa.string())
    return texts


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@cache
def _decode_sql() -> str:
    columns = [
        *(f"texts[{_place(name)}] AS {column}" for column, name in _TEXTS.items()),
        *(f"wholes[{_place(name)}] AS {column}" for column, name in _WHOLES.items()),
        *(f"coalesce(reals[{_place(name)}], wholes[{_place(name)}]) AS {column}" for column, name in _REALS.items()),
        *(f"flags[{_place(name)}] AS {column}" for column, name in _FLAGS.items()),
        *(
            f"list_transform(arrays[{_place(name)}], lambda item: item.stringValue) AS {column}"
            for column, name in _LISTS.items()
        ),
    ]
    taken = [*_TEXTS, *_WHOLES, *_REALS, *_FLAGS, *_LISTS]
    return Template(schema.script("decode_spans.sql")).substitute(
        shape=_SHAPE,
        columns=",\n           ".join(columns),
        n_taken=_count([column for column in taken if column not in _OF_CALLS]),
        n_taken_of_calls=_count(sorted(_OF_CALLS)),
    )


def _count(columns: list[str]) -> str:
    return " + ".join(f"({column} IS NOT NULL)::INTEGER" for column in columns)


def _place(name: str) -> str:
    return f"list_position(names, '{name}')"
