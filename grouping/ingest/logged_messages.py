"""Prompts and answers that came in log records of their own, joined to the calls they belong to.

Some instrumentations keep messages out of their spans and send each as a log record with
the span's ids. Records and spans come in any order and in any number of transactions: a
call has what the records that are there say, taken together each time one comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from tracetune.grouping.columns import FLAG, TEXT, WHOLE
from tracetune.grouping.conventions.spans import read_events
from tracetune.grouping.conventions.table import MESSAGE_EVENTS
from tracetune.grouping.ingest.otlp import example_id_of
from tracetune.grouping.queries.results import read_table
from tracetune.grouping.scripts import script, template
from tracetune.tracer import names

if TYPE_CHECKING:
    import duckdb

# Of calls whose records are read together.
_PAGE_ROWS = 1_000
_TOLD = pa.schema(
    [
        ("rollout_id", TEXT),
        ("span_id", TEXT),
        ("choice", WHOLE),
        ("messages", TEXT),
        ("completion", TEXT),
        ("finish_reason", TEXT),
        ("is_cut", FLAG),
        ("is_redacted", FLAG),
        ("prompt_id", TEXT),
    ]
)


def join_logged_messages(connection: duckdb.DuckDBPyConnection) -> None:
    """Give calls the messages of their log records; the temporary table `logged_messages` then names those calls.

    Args:
        connection: in the transaction that added the rows, with its variables `last_<table>`.
    """
    events = "(" + ", ".join(f"'{name}'" for name in MESSAGE_EVENTS) + ")"
    find = template("ingest", "find_logged_messages").substitute(events=events, page_rows=_PAGE_ROWS)
    connection.execute(find)
    [(pages,)] = connection.execute("SELECT coalesce(max(page) + 1, 0) FROM logged").fetchall()
    for page in range(pages):
        requests = read_table(connection, "FROM logged WHERE page = ?", [page]).to_pylist()
        told = [row for request in requests for row in _told(request)]
        connection.register("told", pa.Table.from_pylist(told, schema=_TOLD))
        connection.execute("INSERT INTO logged_messages BY NAME FROM told")
        connection.unregister("told")
    connection.execute("DROP TABLE logged")
    if pages:
        connection.execute(script("ingest", "derive_logged_messages"))


def _told(request: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """What a call's records say, a row for each choice."""
    events = [_event(record) for record in request["records"]]
    is_redacted = any(names.REDACTED in said for _, said in events)
    reading = read_events(events)
    prompt_id = example_id_of(reading.messages) if request["is_root"] else None
    for choice, (completion, finish_reason) in enumerate(reading.choices):
        yield {
            "rollout_id": request["rollout_id"],
            "span_id": request["span_id"],
            "choice": choice,
            "messages": reading.messages,
            "completion": completion,
            "finish_reason": finish_reason,
            "is_cut": names.TRUNCATED in reading.said,
            "is_redacted": is_redacted,
            "prompt_id": prompt_id,
        }


def _event(record: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """A record as if it were an event of its span: what its body says, beside its attributes."""
    attributes = orjson.loads(record["rest"]) if record["rest"] else {}
    try:
        body = orjson.loads(record["body"])
    except orjson.JSONDecodeError:
        body = None  # a text; no emitter says messages so
    return record["event_name"], {**attributes, **body} if isinstance(body, dict) else attributes
