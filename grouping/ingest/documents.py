"""A document cut up: one for each of its spans and log records.

A line that cannot be taken in whole may hold one span that is wrong and a thousand that
are not. Cut up, only the one is set aside.
"""

from __future__ import annotations

from typing import Any

import orjson

_LEVELS = (("resourceSpans", "scopeSpans", "spans"), ("resourceLogs", "scopeLogs", "logRecords"))


def parts_of(document: Any) -> list[bytes]:
    """The documents of a document's spans and records; none where it has but one, or is no OTLP.

    Example:
        >>> parts_of({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "a"}, {"name": "b"}]}]}]})[1]
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"name":"b"}]}]}]}'
    """
    try:
        parts = [
            orjson.dumps({resources: [{**resource, scopes: [{**scope, items: [item]}]}]})
            for resources, scopes, items in _LEVELS
            for resource in document.get(resources, ())
            for scope in resource[scopes]
            for item in scope[items]
        ]
    except (AttributeError, KeyError, TypeError):
        return []
    return parts if len(parts) > 1 else []
