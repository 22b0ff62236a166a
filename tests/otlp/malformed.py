"""A corpus of bad requests: every way that we know to get OTLP wrong, once for each place where it can be.

Each case is a path, an encoding, a body and what may come of it: `REFUSED`, a 4xx for the
whole request, or `PARTIAL`, a partial success that counts the one bad item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import orjson
from otlp.serving import JSON, PROTOBUF, REQUESTS, a_record, a_span, attribute, body, good, request

REFUSED, PARTIAL = "refused", "partial"
PATHS = ("/v1/traces", "/v1/logs")


@dataclass(frozen=True)
class Case:
    """One bad request."""

    name: str
    path: str
    encoding: str
    content: bytes
    expected: str


# Bodies that are no JSON, or no object, whatever they are sent to; made from a good body.
BAD_JSON: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "blank": lambda _: b" \n\t ",
    "a word": lambda _: b"null",
    "a number": lambda _: b"1",
    "a text": lambda _: b'"resourceSpans"',
    "a list": lambda good: b"[" + good + b"]",
    "two documents": lambda good: good + good,
    "two lines": lambda good: good + b"\n" + good,
    "a comma too many": lambda good: good[:-1] + b",}",
    "a bracket too many": lambda good: good + b"}",
    "single quotes": lambda good: good.replace(b'"', b"'"),
    "a comment": lambda good: b"/* spans */" + good,
    "a byte order mark": lambda good: b"\xef\xbb\xbf" + good,
    "UTF-16": lambda good: good.decode().encode("utf-16"),
    "Latin-1": lambda good: good.replace(b"number", b"n\xfcmmer"),
    "an overlong byte": lambda good: good.replace(b"number", b"n\xc0\xaf"),
    "a bare line end in a text": lambda good: good.replace(b"number", b"num\nber"),
    "a zero byte": lambda good: good.replace(b"number", b"num\0ber"),
    "a broken escape": lambda good: good.replace(b"number", b"\\u12"),
    "NaN": lambda good: good.replace(b'"intValue":"1"', b'"doubleValue":NaN'),
    "Infinity": lambda good: good.replace(b'"intValue":"1"', b'"doubleValue":-Infinity'),
    "ten thousand digits": lambda good: good.replace(b'"intValue":"1"', b'"intValue":' + b"9" * 10_000),
    "nested too deep": lambda good: b'{"a":' * 100_000 + good + b"}" * 100_000,
    "lists nested too deep": lambda _: b"[" * 100_000,
    "a key twice": lambda good: good[:-1] + b"," + good[1:],
    "a leading zero": lambda good: good.replace(b'"intValue":"1"', b'"intValue":01'),
    "protobuf": lambda _: body("/v1/traces", good("/v1/traces", 1), PROTOBUF),
}

# Values that a field of each kind cannot have.
_NOT_AN_ID: list[Any] = ["", "00" * 16, "00" * 8, "ab", "zz" * 16, "0" * 33, 5, 1.5, True, [], {}, ["ab" * 16]]
_NOT_A_TIME: list[Any] = ["", "soon", "-1", "1.5", "1e3", str(2**64), str(2**63 - 1), 0, -1, 1.5, True, [], {}]
_NOT_A_LIST: list[Any] = ["x", 1, True, {}, {"0": {}}]
_NOT_AN_OBJECT: list[Any] = ["x", 1, True, []]
_NOT_A_TEXT: list[Any] = [1, 1.5, True, [], {}, "\ud800"]
_NOT_A_VALUE: list[Any] = [
    "x",
    1,
    [],
    {"stringValue": 1},
    {"stringValue": "\ud800"},
    {"boolValue": "true"},
    {"boolValue": 1},
    {"intValue": "x"},
    {"intValue": 1.5},
    {"intValue": "9223372036854775808"},
    {"intValue": True},
    {"intValue": 10**30},
    {"doubleValue": "x"},
    {"doubleValue": True},
    {"doubleValue": [1]},
    {"doubleValue": "1e999"},
    {"bytesValue": "%"},
    {"bytesValue": 1},
    {"arrayValue": []},
    {"arrayValue": {"values": {}}},
    {"arrayValue": {"values": ["x"]}},
    {"kvlistValue": {"values": [{"key": 1}]}},
    {"kvlistValue": [1]},
    {"stringValue": "a", "intValue": "1"},
]

# Where in a span or record, and what cannot stand there: the item is refused, its neighbour is kept.
BAD_SPANS: list[tuple[tuple[Any, ...], list[Any]]] = [
    (("traceId",), _NOT_AN_ID),
    (("spanId",), _NOT_AN_ID),
    (("parentSpanId",), ["ab", "zz" * 8, "1" * 32, 5, True, [], {}]),
    (("startTimeUnixNano",), _NOT_A_TIME),
    (("endTimeUnixNano",), _NOT_A_TIME),
    (("name",), _NOT_A_TEXT),
    (("kind",), ["a kind", 1.5, True, [], {}, 2**31]),
    (("flags",), [-1, 2**32, "x", [], True]),
    (("status",), _NOT_AN_OBJECT),
    (("status", "code"), ["BAD", 1.5, True, []]),
    (("attributes",), _NOT_A_LIST),
    (("attributes", 0), [*_NOT_AN_OBJECT, {"key": 1}]),
    (("attributes", 0, "value"), _NOT_A_VALUE),
    (("events",), [*_NOT_A_LIST, ["x"], [{"timeUnixNano": "x"}], [{"attributes": 1}]]),
    (("links",), [*_NOT_A_LIST, ["x"], [{"traceId": "zz"}], [{"spanId": 1}]]),
]
BAD_RECORDS: list[tuple[tuple[Any, ...], list[Any]]] = [
    (("timeUnixNano",), _NOT_A_TIME),
    (("observedTimeUnixNano",), ["x", -1, True, [], {}]),
    (("eventName",), _NOT_A_TEXT),
    (("body",), _NOT_A_VALUE),
    (("severityNumber",), ["LOUD", 1.5, True, []]),
    (("traceId",), ["zz", 1, [], {}]),
    (("attributes",), _NOT_A_LIST),
    (("attributes", 0, "value"), _NOT_A_VALUE),
]
# Around the items: nothing in the request can be trusted then.
BAD_FRAMES: list[tuple[tuple[Any, ...], list[Any]]] = [
    (("resources",), _NOT_A_LIST),
    (("resources", 0), _NOT_AN_OBJECT),
    (("resources", 0, "resource"), _NOT_AN_OBJECT),
    (("resources", 0, "resource", "attributes"), _NOT_A_LIST),
    (("resources", 0, "scopes"), _NOT_A_LIST),
    (("resources", 0, "scopes", 0), _NOT_AN_OBJECT),
    (("resources", 0, "scopes", 0, "scope"), _NOT_AN_OBJECT),
    (("resources", 0, "scopes", 0, "scope", "name"), _NOT_A_TEXT),
    (("resources", 0, "scopes", 0, "items"), _NOT_A_LIST),
]
_FIELDS = {
    "/v1/traces": {"resources": "resourceSpans", "scopes": "scopeSpans", "items": "spans"},
    "/v1/logs": {"resources": "resourceLogs", "scopes": "scopeLogs", "items": "logRecords"},
}


def corpus() -> list[Case]:
    """Every case."""
    return [*_json_cases(), *_protobuf_cases()]


def _json_cases() -> Iterator[Case]:
    for path in PATHS:
        whole = orjson.dumps(good(path, 1))
        for name, spoil in BAD_JSON.items():
            yield Case(name, path, JSON, spoil(whole), REFUSED)
        for cut in range(1, len(whole), 37):
            yield Case(f"cut after {cut} bytes", path, JSON, whole[:cut], REFUSED)
        make, places = (a_span, BAD_SPANS) if path == "/v1/traces" else (a_record, BAD_RECORDS)
        for place, values in places:
            for value in values:
                document = request(path, [_replaced(make(1), place, value), make(2)])
                yield Case(f"{place} is {value!r:.40}", path, JSON, _dumps(document), PARTIAL)
        for place, values in BAD_FRAMES:
            for value in values:
                named = tuple(_FIELDS[path].get(step, step) if isinstance(step, str) else step for step in place)
                yield Case(f"{place} is {value!r}", path, JSON, _dumps(_replaced(good(path, 1), named, value)), REFUSED)


def _protobuf_cases() -> Iterator[Case]:
    for path in PATHS:
        whole = body(path, good(path, 1), PROTOBUF)
        for cut in range(1, len(whole), 7):
            yield Case(f"cut after {cut} bytes", path, PROTOBUF, whole[:cut], REFUSED)
        for name, content in {
            "JSON": orjson.dumps(good(path, 1)),
            "words": b"hello, receiver",
            "a field without a value": b"\x0a",
            "a length without an end": b"\x0a" + b"\xff" * 12,
            "a group that never ends": b"\x0b" * 200,
            "field 0": b"\x00\x01",
            "text that is not UTF-8": whole.replace(b"number", b"n\xfcmber"),
            "nested too deep": _nested(path, 200),
        }.items():
            yield Case(name, path, PROTOBUF, content, REFUSED)
    for name, fields in {
        "no trace id": {"traceId": ""},
        "a trace id of zeros": {"traceId": "00" * 16},
        "a short trace id": {"traceId": "ab" * 8},
        "a long trace id": {"traceId": "ab" * 17},
        "no span id": {"spanId": ""},
        "a span id of zeros": {"spanId": "00" * 8},
        "a long span id": {"spanId": "ab" * 16},
        "a short parent": {"parentSpanId": "ab"},
        "no start": {"startTimeUnixNano": "0"},
        "no end": {"endTimeUnixNano": "0"},
        "an end after all time": {"endTimeUnixNano": str(2**64 - 1)},
    }.items():
        document = request("/v1/traces", [a_span(1, **fields), a_span(2)])
        yield Case(name, "/v1/traces", PROTOBUF, body("/v1/traces", document, PROTOBUF), PARTIAL)
    for name, time in {"no time": "0", "a time after all time": str(2**63)}.items():
        document = request("/v1/logs", [a_record(1, timeUnixNano=time), a_record(2)])
        yield Case(name, "/v1/logs", PROTOBUF, body("/v1/logs", document, PROTOBUF), PARTIAL)


def _replaced(document: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = deepcopy(document)
    inner: Any = changed
    for step in place[:-1]:
        inner = inner.setdefault(step, {}) if isinstance(inner, dict) else inner[step]
    inner[place[-1]] = value
    return changed


def _dumps(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:  # numbers and texts that orjson is too strict for
        import json

        return json.dumps(document).encode()


def _nested(path: str, depth: int) -> bytes:
    message = REQUESTS[path]()
    message.ParseFromString(body(path, good(path, 1), PROTOBUF))
    resource = message.resource_spans[0] if path == "/v1/traces" else message.resource_logs[0]
    value = resource.resource.attributes.add(key=attribute("deep", 1)["key"]).value
    for _ in range(depth):
        value = value.array_value.values.add()
    value.int_value = 1
    return message.SerializeToString()
