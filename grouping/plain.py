"""The quick way into the store for the tracer's own lines: DuckDB reads them itself.

Nearly every line is one span of ours whose attributes all have a column and whose
messages are plain text, or a record that every rollout has. DuckDB reads those on every
core, straight into the tables, several times faster than Python can. Only calls stop on
the way, in a temporary table, because each becomes rows of two tables. Whatever is not
plain, `otlp.decode` reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from tracetune.grouping import schema
from tracetune.grouping.plain_lines import PlainLines
from tracetune.grouping.plain_records import PLAIN_RECORDS, records_sql
from tracetune.grouping.rows import RECORDS, SPANS
from tracetune.tracer import names

if TYPE_CHECKING:
    import duckdb

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


def insert_plain(
    connection: duckdb.DuckDBPyConnection, text: bytes | memoryview, start: int = 0
) -> tuple[list[tuple[int, bytes]], Counter[str]]:
    """Read the plain lines into `spans`, `call_rows` and the tables of `PLAIN_RECORDS`.

    Args:
        connection: has the tables.
        text: whole lines.
        start: the offset of the text in its segment.

    Returns:
        The other lines, with their offsets; and how many rows were added to each table.
    """
    lines = PlainLines(text)
    inserted: Counter[str] = Counter()
    if len(lines.spans):
        inserted["spans"] = _insert_spans(connection, lines)
    for event_name in PLAIN_RECORDS:
        table, columns = RECORDS[event_name].table, RECORDS[event_name].schema.names
        if len(rows := lines.records(event_name)):
            connection.register("lines", rows)
            inserted[table] = _insert(connection, table, columns, records_sql(event_name))
            lines.take(rows)
            if inserted[table] < len(rows):
                lines.leave(_not_plain(connection, records_sql(event_name)))
    connection.unregister("lines")
    return lines.others(start), inserted


def _insert_spans(connection: duckdb.DuckDBPyConnection, lines: PlainLines) -> int:
    """Insert the spans among the lines, and the calls; give how many spans there were."""
    connection.register("lines", lines.spans)
    parameters = {"resource": lines.resource}
    connection.execute(_calls_sql(), parameters)
    n_calls = _insert(connection, "spans", SPANS.names, "FROM plain_calls")
    connection.execute(schema.script("insert_plain_calls.sql"))
    n_others = _insert(connection, "spans", SPANS.names, _spans_sql(is_lm=False), parameters)
    lines.take(lines.spans)
    if n_calls + n_others < len(lines.spans):
        lines.leave(_not_plain(connection, "FROM plain_calls"))
        lines.leave(_not_plain(connection, _spans_sql(is_lm=False), parameters))
    connection.execute("DROP TABLE plain_calls")
    return n_calls + n_others


def _insert(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    columns: Sequence[str],
    select: str,
    parameters: Mapping[str, Any] | None = None,
) -> int:
    """Insert what a SELECT finds plain, and give how many rows that was."""
    insert = f"INSERT INTO {table} BY NAME SELECT {', '.join(columns)} FROM ({select}) WHERE is_plain"  # noqa: S608  our own names
    answer = connection.execute(insert, parameters).fetchone()
    assert answer is not None
    return int(answer[0])


def _not_plain(connection: duckdb.DuckDBPyConnection, select: str, parameters: Mapping[str, Any] | None = None) -> Any:
    """The numbers of the lines that it does not."""
    left = f"SELECT number FROM ({select}) WHERE NOT is_plain"  # noqa: S608  our own names
    return connection.execute(left, parameters).fetchnumpy()["number"]


@cache
def _calls_sql() -> str:
    return schema.template("decode_calls.sql").substitute(spans=_spans_sql(is_lm=True))


@cache
def _spans_sql(*, is_lm: bool) -> str:
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
    taken = values.keys() - (set() if is_lm else _OF_CALLS)
    return schema.template("decode_spans.sql").substitute(
        shape=_SPAN,
        is_lm=str(is_lm).lower(),
        # Inside of a text the quotes would be escaped, so this stands nowhere else in a line.
        lm_mark=f'{{"key":"{names.KIND}","value":{{"stringValue":"lm"}}}}',
        columns=",\n           ".join(
            f"{value if column in taken else 'NULL'} AS {column}" for column, value in values.items()
        ),
        n_taken=" + ".join(f"({column} IS NOT NULL)::INTEGER" for column in values if column in taken),
    )


def _place(name: str) -> str:
    return f"list_position(names, '{name}')"
