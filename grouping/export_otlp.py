"""A store as OTLP documents: every span, then every record, each in order of time.

The store is asked for a page at a time, so that a store of any size needs little memory
here, and other processes have their turn between two pages. A store grows in order of
time, about, so a page lies close together in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import orjson

from tracetune.grouping.columns import OTHER_RECORDS, RECORDS, TIME, RecordTable
from tracetune.grouping.exchange.to_otlp import record_document, span_document
from tracetune.grouping.scripts import script
from tracetune.grouping.store import Store
from tracetune.tracer.encoding import SCOPE_NAME

PAGE_ROWS = 10_000
# Of a document, about: servers of OTLP take a few MB at once.
DOCUMENT_BYTES = 1024 * 1024
_SPAN_KEYS = ("epoch_ns(started_at)", "trace_id", "span_id")
_RECORD_KEYS = ("epoch_ns(recorded_at)", "record_id")


@dataclass(frozen=True, slots=True)
class Export:
    """What of a store is exported.

    Args:
        store: where it stands.
        where: a condition in SQL over the columns of `rollouts`: their spans are
            exported, and what was recorded of them and of their runs; None: everything.

    Raises:
        QueryError: if the condition is none, or DuckDB refuses it.

    Example:
        >>> store = Store("exported.duckdb")
        >>> ids = store.add_rollouts([{"id": "r1", "example_id": "q1", "calls": [{"module": "hop"}]}])
        >>> export = Export(store, "rollout_id = 'r1'")
        >>> export.n_spans
        3
        >>> [list(document) for document in export.documents()]
        [['resourceSpans'], ['resourceLogs'], ['resourceLogs']]
    """

    store: Store
    where: str | None = None

    def __post_init__(self) -> None:
        if self.where is not None:
            self.store.check_condition(self.where)

    @property
    def n_spans(self) -> int:
        """How many spans there are to export."""
        query = f"WITH {self._selected} SELECT count(*) AS n FROM spans WHERE {self._of_rollouts}"  # noqa: S608  the condition may be any SQL that reads
        [row] = self.store.sql(query).rows()
        return int(row["n"])

    def documents(self) -> Iterator[dict[str, Any]]:
        """The documents: first those of spans, then those of log records."""
        yield from self._span_documents()
        for table in (*RECORDS.values(), OTHER_RECORDS):
            yield from self._record_documents(table)

    def _span_documents(self) -> Iterator[dict[str, Any]]:
        statement = script("sql", "export_spans").replace("{condition}", self._of_rollouts)
        statement = statement.replace("{selected}", self._selected)
        names = ("started_at", "trace_id", "span_id")
        for first, after in self._pages("spans", _SPAN_KEYS, self._of_rollouts):
            params = {**dict(zip(names, first, strict=True)), **_after(names, after)}
            spans = [span_document(row) for row in self.store.sql(statement, params).rows()]
            yield from _packed(spans, "resourceSpans", "scopeSpans", "spans")

    def _record_documents(self, table: RecordTable) -> Iterator[dict[str, Any]]:
        condition = self._of_records(table)
        times = ", ".join(
            f"epoch_ns({name}) AS {name}" for name in table.schema.names if table.schema.field(name).type == TIME
        )
        columns = ", ".join(name for name in table.schema.names if table.schema.field(name).type != TIME)
        if table.table == "batches":
            columns = columns.replace("members, ", f"({_MEMBERS}) AS members, ")
        for first, after in self._pages(table.table, _RECORD_KEYS, condition):
            query = f"""
                WITH {self._selected}
                SELECT {times}, {columns}
                FROM {table.table}
                WHERE recorded_at BETWEEN make_timestamp_ns($recorded_at)
                                      AND coalesce(make_timestamp_ns($recorded_at_after), 'infinity')
                  AND (epoch_ns(recorded_at) > $recorded_at OR record_id >= $record_id)
                  AND ($record_id_after IS NULL
                       OR epoch_ns(recorded_at) < $recorded_at_after OR record_id < $record_id_after)
                  AND {condition}
                ORDER BY recorded_at, record_id
            """  # noqa: S608  our own names, and a condition that may be any SQL that reads
            names = ("recorded_at", "record_id")
            params = {**dict(zip(names, first, strict=True)), **_after(names, after)}
            nothing: dict[str, Any] = {}  # records have no resource
            scope = nothing if table is OTHER_RECORDS else {"name": SCOPE_NAME}
            rows = self.store.sql(query, params).rows()
            records = [(nothing, scope, record_document(table.table, row)) for row in rows]
            yield from _packed(records, "resourceLogs", "scopeLogs", "logRecords")

    def _pages(
        self, table: str, keys: Sequence[str], condition: str
    ) -> Iterator[tuple[Sequence[Any], Sequence[Any] | None]]:
        """The key that each page of a table begins with, and the one that the next begins with."""
        listed = ", ".join(keys)
        firsts = self.store.sql(
            f"""
            WITH {self._selected}
            SELECT * EXCLUDE (place)
            FROM (SELECT {listed}, row_number() OVER (ORDER BY {listed}) - 1 AS place FROM {table} WHERE {condition})
            WHERE place % {PAGE_ROWS} = 0
            ORDER BY ALL
            """  # noqa: S608  as above
        ).rows()
        keys_in_order = [tuple(row.values()) for row in firsts]
        yield from zip_longest(keys_in_order, keys_in_order[1:])

    @property
    def _selected(self) -> str:
        # Apart from what is selected for it, so that the condition sees no columns but those of `rollouts`;
        # the line end keeps a comment at its end from swallowing the parenthesis.
        return f"selected AS (SELECT rollout_id, run FROM rollouts WHERE ({self.where or 'true'}\n))"  # noqa: S608  as above

    @property
    def _of_rollouts(self) -> str:
        return "true" if self.where is None else "rollout_id IN (SELECT rollout_id FROM selected)"

    def _of_records(self, table: RecordTable) -> str:
        columns = table.schema.names
        if self.where is None:
            return "true"
        if table is OTHER_RECORDS:
            return f"(trace_id, span_id) IN (SELECT trace_id, span_id FROM spans WHERE {self._of_rollouts})"  # noqa: S608  as above
        if table.table == "completions":
            return f"completion_key IN (SELECT completion_key FROM call_rows WHERE {self._of_rollouts})"  # noqa: S608  as above
        if "call_id" in columns:
            return f"({self._of_rollouts} OR call_id IN (SELECT call_id FROM call_rows WHERE {self._of_rollouts}))"  # noqa: S608  as above
        if "rollout_id" in columns:
            return self._of_rollouts
        return "run IN (SELECT run FROM selected)" if "run" in columns else "false"


_MEMBERS = """
    SELECT to_json(list(struct_pack(group_id, slot, call_id, rollout_id, reward, advantage) ORDER BY members.rowid))
    FROM batch_members AS members
    WHERE members.record_id = batches.record_id
"""


def _after(names: Sequence[str], key: Sequence[Any] | None) -> dict[str, Any]:
    return {f"{name}_after": key[place] if key else None for place, name in enumerate(names)}


def _packed(
    items: Sequence[tuple[Mapping[str, Any], Mapping[str, Any], dict[str, Any]]], resources: str, scopes: str, name: str
) -> Iterator[dict[str, Any]]:
    """Documents of a moderate size; in each, what shares a resource and a scope stands together."""
    found: dict[bytes, dict[str, Any]] = {}
    size = 0
    for resource, scope, item in items:
        key = orjson.dumps([resource, scope])
        if key not in found:
            found[key] = {"resource": resource, scopes: [{"scope": scope, name: []}]}
            size += len(key)
        found[key][scopes][0][name].append(item)
        size += len(orjson.dumps(item))
        if size >= DOCUMENT_BYTES:
            yield {resources: list(found.values())}
            found, size = {}, 0
    if found:
        yield {resources: list(found.values())}
