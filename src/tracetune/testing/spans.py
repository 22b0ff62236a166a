"""Spans of a test as plain values: ids and times that repeat, and what a spool holds.

with deterministic(), tracetune.record(store):
    find("water is wet")
assert span_tree(f"{store}.spool", attributes=()) == [
    {"name": "find", "children": [{"name": "write_query", "children": []}]}
]
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from tracetune.tracer import sources

__all__ = ["deterministic", "span_tree", "spool_records"]


@contextmanager
def deterministic(*, start: int = 1_700_000_000_000_000_000, tick: int = 1_000_000) -> Iterator[None]:
    """Inside the block ids are 1, 2, 3 … and every look at the clock finds it one tick later.

    Args:
        start: what the clock shows first, in nanoseconds since the epoch.
        tick: nanoseconds.

    Example:
        >>> with deterministic():
        ...     sources.new_id(), sources.now(), sources.now()
        ('00000000000000000000000000000001', 1700000000000000000, 1700000000001000000)
    """
    ids, times = itertools.count(1), itertools.count(start, tick)
    with sources.replaced(lambda bits: next(ids), lambda: next(times)):
        yield


def span_tree(spool: str | os.PathLike[str], *, attributes: Collection[str] | None = None) -> list[dict[str, Any]]:
    """The spans of a spool folder, children inside their parents, in the order in which they started.

    Args:
        spool: the folder, `<store>.spool`.
        attributes: which attributes to show; all by default, none at all for `()`.

    Returns:
        For each root a dictionary with `name`, `attributes` (unless none were asked for),
        `exceptions` (the types of those recorded, where there were any) and `children`.
    """
    spans = [
        span
        for document in _documents(spool)
        for resource_spans in document.get("resourceSpans", ())
        for scope_spans in resource_spans["scopeSpans"]
        for span in scope_spans["spans"]
    ]
    nodes: dict[str, dict[str, Any]] = {span["spanId"]: _node(span, attributes) for span in spans}
    roots: list[dict[str, Any]] = []
    for span in sorted(spans, key=lambda span: int(span["startTimeUnixNano"])):
        parent = nodes.get(span.get("parentSpanId", ""))
        (roots if parent is None else parent["children"]).append(nodes[span["spanId"]])
    return roots


def spool_records(spool: str | os.PathLike[str], event_name: str) -> list[dict[str, Any]]:
    """The bodies of a spool folder's records of one name, one of `names.RECORD_*`, in the order of their times."""
    records = [
        record
        for document in _documents(spool)
        for resource_logs in document.get("resourceLogs", ())
        for scope_logs in resource_logs["scopeLogs"]
        for record in scope_logs["logRecords"]
        if record["eventName"] == event_name
    ]
    records.sort(key=lambda record: int(record["timeUnixNano"]))
    return [orjson.loads(record["body"]["stringValue"]) for record in records]


def _documents(spool: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    for segment in sorted(Path(spool).glob("*.jsonl")):
        for line in segment.read_bytes().splitlines():
            if line:
                yield orjson.loads(line)


def _node(span: dict[str, Any], wanted: Collection[str] | None) -> dict[str, Any]:
    node: dict[str, Any] = {"name": span["name"]}
    found = {item["key"]: _value(item["value"]) for item in span["attributes"]}
    if wanted is None:
        node["attributes"] = found
    elif wanted:
        node["attributes"] = {name: value for name, value in found.items() if name in wanted}
    exceptions = [event for event in span.get("events", ()) if event["name"] == "exception"]
    if exceptions:
        node["exceptions"] = [
            _value(item["value"])
            for event in exceptions
            for item in event["attributes"]
            if item["key"] == "exception.type"
        ]
    node["children"] = []
    return node


def _value(value: dict[str, Any]) -> Any:
    for kind, raw in value.items():
        if kind == "intValue":
            return int(raw)
        if kind == "arrayValue":
            return [_value(item) for item in raw["values"]]
        if kind == "kvlistValue":
            return {item["key"]: _value(item["value"]) for item in raw["values"]}
        return raw
    return None
