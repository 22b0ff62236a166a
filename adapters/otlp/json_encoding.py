"""OTLP between its two encodings: protobuf messages and JSON documents.

OTLP's JSON is not quite protobuf's own: ids are hexadecimal, enums are numbers. The
fields come from the messages' descriptors, so whatever a later version of the protocol
adds is read too. A document that `checked` or `document_of` gave is canonical: known
fields only and no defaults, 64-bit integers as strings, ids in lower case, attributes
with key and value.

Reference:
    OpenTelemetry protocol, "JSON Protobuf Encoding"; Protocol Buffers, "ProtoJSON Format".
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

Json = dict[str, Any]

# As deep as protobuf's own reader goes, so that both encodings hold the same documents.
MAX_DEPTH = 100

_IDS = frozenset({"traceId", "spanId", "parentSpanId"})
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,20}")
_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_WIDE = {field_type for field_type, (_, highest) in _RANGES.items() if highest > 2**32}
_REALS = {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}


class Malformed(ValueError):
    """What was read is not OTLP; the message says where and why."""

    def inside(self, place: str) -> Malformed:
        """The same, seen from one level further out."""
        message = str(self)
        separator = "" if message.startswith("[") else "." if re.match(r"\w+[:.\[]", message) else ": "
        return Malformed(f"{place}{separator}{message}")


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field stands in each encoding; lists are of such values."""

    attribute: str
    is_list: bool
    default: Any  # a value that is the same as none; None where there is no such value
    message: Descriptor | None
    check: Callable[[Any, int], Any]  # of untrusted JSON, and how deep it lies
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


def read_json(text: bytes) -> Any:
    """The value that JSON in UTF-8 stands for.

    Raises:
        Malformed: if it is none, or says one key of an object twice.

    Example:
        >>> read_json(b'{"kind": 1}')
        {'kind': 1}
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except Malformed:
        raise
    except RecursionError:
        raise Malformed("not JSON that can be read: nested too deep") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:  # UTF-8's, and that of a number with thousands of digits
        raise Malformed(f"not JSON: {error}") from None


def checked(value: Any, message: Descriptor, depth: int = 0) -> Json:
    """A message's JSON from somebody else, as a canonical document; fields that are not known are left out.

    Raises:
        Malformed: if a field holds what it can't.

    Example:
        >>> from opentelemetry.proto.trace.v1.trace_pb2 import Span
        >>> checked({"traceId": "0A", "kind": "SPAN_KIND_CLIENT", "endTimeUnixNano": 5, "color": 1}, Span.DESCRIPTOR)
        {'traceId': '0a', 'kind': 3, 'endTimeUnixNano': '5'}
    """
    if not isinstance(value, dict):
        raise Malformed(f"an object belongs here, not {_shown(value)}")
    if depth > MAX_DEPTH:
        raise Malformed(f"nested deeper than {MAX_DEPTH} levels")
    fields = _fields(message)
    document: Json = {}
    for name, item in value.items():
        field = fields.get(name)
        if field is None or item is None:  # null is a field's default
            continue
        try:
            known = _checked_list(field, item, depth) if field.is_list else field.check(item, depth)
        except Malformed as error:
            raise error.inside(name) from None
        if field.default is None or known != field.default:
            document[name] = known
    if message.name == "AnyValue" and len(document) > 1:
        raise Malformed(f"a value is of one type, and this one has {' and '.join(sorted(document))}")
    return _completed(document, message)


def document_of(message: Message) -> Json:
    """A protobuf message as a canonical document.

    Example:
        >>> from opentelemetry.proto.trace.v1.trace_pb2 import Span
        >>> document_of(Span(trace_id=b"1", name="chat", end_time_unix_nano=5))
        {'traceId': '31', 'name': 'chat', 'endTimeUnixNano': '5'}
    """
    fields = _fields(message.DESCRIPTOR)
    document: Json = {}
    for descriptor, value in message.ListFields():
        field = fields.get(descriptor.json_name)
        if field is not None:
            document[descriptor.json_name] = (
                [field.to_json(item) for item in value] if field.is_list else field.to_json(value)
            )
    return _completed(document, message.DESCRIPTOR)


def fill(message: Message, document: Mapping[str, Any]) -> None:
    """Set a message's fields to what a canonical document says.

    Example:
        >>> from opentelemetry.proto.trace.v1.trace_pb2 import Span
        >>> span = Span()
        >>> fill(span, {"traceId": "31", "endTimeUnixNano": "5"})
        >>> span.trace_id, span.end_time_unix_nano
        (b'1', 5)
    """
    fields = _fields(message.DESCRIPTOR)
    for name, value in document.items():
        field = fields[name]
        if field.message is None:
            converted = [field.from_json(item) for item in value] if field.is_list else field.from_json(value)
            if field.is_list:
                getattr(message, field.attribute).extend(converted)
            else:
                setattr(message, field.attribute, converted)
        elif field.is_list:
            items = getattr(message, field.attribute)
            for item in value:
                fill(items.add(), item)
        else:
            part = getattr(message, field.attribute)
            part.SetInParent()  # an empty list is a value too
            fill(part, value)


def _checked_list(field: _Field, value: Any, depth: int) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"a list belongs here, not {_shown(value)}")
    items: list[Any] = []
    try:
        for item in value:
            items.append(field.check(item, depth))
    except Malformed as error:
        raise error.inside(f"[{len(items)}]") from None
    return items


def _completed(document: Json, message: Descriptor) -> Json:
    if message.name == "KeyValue":
        return {"key": document.get("key", ""), "value": document.get("value", {})}
    return document


@cache
def _fields(message: Descriptor) -> dict[str, _Field]:
    # Indices into a table of strings belong to profiles, where there is such a table.
    return {field.json_name: _field(field) for field in message.fields if not field.json_name.endswith("Strindex")}


def _field(descriptor: FieldDescriptor) -> _Field:
    kind, message = descriptor.type, descriptor.message_type
    check: Callable[[Any, int], Any]
    to_json: Callable[[Any], Any] = _same
    from_json: Callable[[Any], Any] = _same
    if message is not None:
        check, to_json = _check_of_message(message), document_of
    elif kind in _RANGES:
        if kind in _WIDE:
            to_json, from_json = str, int
        check = _check_of_whole(descriptor, to_json)
    elif kind in _REALS:
        check, to_json, from_json = _checked_real, _real, float
    elif kind == FieldDescriptor.TYPE_BYTES and descriptor.json_name in _IDS:
        check, to_json, from_json = _checked_id, bytes.hex, bytes.fromhex
    elif kind == FieldDescriptor.TYPE_BYTES:
        check, to_json, from_json = _checked_bytes, _base64, base64.b64decode
    else:
        check = _checked_flag if kind == FieldDescriptor.TYPE_BOOL else _checked_text
    default: Any = None
    if descriptor.is_repeated:
        default = []
    elif not descriptor.has_presence:
        default = to_json(descriptor.default_value)
    return _Field(descriptor.name, descriptor.is_repeated, default, message, check, to_json, from_json)


def _check_of_message(message: Descriptor) -> Callable[[Any, int], Any]:
    return lambda value, depth: checked(value, message, depth + 1)


def _check_of_whole(descriptor: FieldDescriptor, to_json: Callable[[int], Any]) -> Callable[[Any, int], Any]:
    words = {value.name: value.number for value in descriptor.enum_type.values} if descriptor.enum_type else {}
    lowest, highest = _RANGES[descriptor.type]

    def check(value: Any, _: int) -> Any:
        number = words.get(value, value) if isinstance(value, str) else value
        return to_json(_whole(number, lowest, highest))

    return check


def _same(value: Any) -> Any:
    return value


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _real(value: float) -> float | str:
    # JSON has no word for what is not finite; ProtoJSON has these.
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _whole(value: Any, lowest: int, highest: int) -> int:
    if (isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value)) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Malformed(f"a whole number belongs here, not {_shown(value)}")
    if not lowest <= value <= highest:
        raise Malformed(f"{_shown(value)} is not between {lowest} and {highest}")
    return value


def _checked_real(value: Any, _: int) -> float | str:
    if isinstance(value, str) and value in ("NaN", "Infinity", "-Infinity"):
        return value
    if not isinstance(value, bool) and isinstance(value, int | float | str):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number):  # else it has too many digits; the words for it were above
                return number
    raise Malformed(f"a number belongs here, not {_shown(value)}")


def _checked_id(value: Any, _: int) -> str:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return bytes.fromhex(value).hex()
    raise Malformed(f"an id is hexadecimal, not {_shown(value)}")


def _checked_bytes(value: Any, _: int) -> str:
    if isinstance(value, str):
        padded = value.replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4)
        with contextlib.suppress(ValueError):
            return _base64(base64.b64decode(padded, validate=True))
    raise Malformed(f"base64 belongs here, not {_shown(value)}")


def _checked_flag(value: Any, _: int) -> bool:
    if not isinstance(value, bool):
        raise Malformed(f"true or false belongs here, not {_shown(value)}")
    return value


def _checked_text(value: Any, _: int) -> str:
    if not isinstance(value, str):
        raise Malformed(f"a text belongs here, not {_shown(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Malformed(f"a text with half of a surrogate pair: {_shown(value)}") from None
    return value


def _shown(value: Any) -> str:
    """A value in a message: short, and harmless to whatever shows it."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case int() if not isinstance(value, bool) and abs(value) >= 10**20:
            return "a number of many digits"
        case _:
            text = json.dumps(value)
            return text if len(text) <= 60 else f"{text[:60]}…"


def _object(pairs: list[tuple[str, Any]]) -> Json:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise Malformed(f"an object has the key {_shown(twice)} twice")
    return members


def _refuse_constant(word: str) -> Any:
    raise Malformed(f"not JSON: {word} is no number there")
