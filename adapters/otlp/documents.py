"""An OTLP request into lines of the spool: whole documents, none of them long.

A line repeats its resource and scope, and the store keeps the resource with each span.
So a line holds few spans of a large resource, and a request that would grow out of all
proportion is refused whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from tracetune.adapters.formats import Line
from tracetune.adapters.otlp.json_encoding import Json, Malformed, checked, document_of, read_json
from tracetune.adapters.otlp.signals import TRACES, Signal, snake_case

LINE_BYTES = 1024 * 1024
# Of a request, with the resource repeated for each of its spans.
KEPT_BYTES = 512 * 1024 * 1024


class TooLarge(Malformed):
    """The request would take too much room in the store."""


@dataclass(slots=True)
class Reading:
    """What was found in one request.

    Attributes:
        lines: what can be kept.
        refused: how many spans or records cannot.
        reason: why, of the first of them, and where it stands.
    """

    lines: list[Line] = field(default_factory=list)
    refused: int = 0
    reason: str = ""

    def refuse(self, place: str, error: Malformed) -> None:
        """Count one that cannot be kept."""
        self.refused += 1
        if not self.reason:
            self.reason = str(error.inside(place))


def read_protobuf(body: bytes, signal: Signal) -> Reading:
    """What a request in protobuf holds.

    Raises:
        Malformed: if it is not such a request.
    """
    request = signal.request()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise Malformed(f"not a protobuf {signal.request.__name__}") from None
    return _read(_scopes_of_message(request, signal), document_of, signal)


def read_json_request(body: bytes, signal: Signal) -> Reading:
    """What a request in JSON holds.

    Raises:
        Malformed: if it is not such a request.

    Example:
        >>> read_json_request(b'{"resourceSpans": []}', TRACES)
        Reading(lines=[], refused=0, reason='')
    """
    return read_document(read_json(body), signal)


def read_document(document: Any, signal: Signal) -> Reading:
    """What a request holds that has been read from JSON.

    Raises:
        Malformed: if what stands around the spans or records is not OTLP.
    """
    return _read(_scopes_of_json(document, signal), lambda item: checked(item, signal.item), signal)


# Where a scope stands in a request, its resource, itself, and what it holds, not read yet.
_Scope = tuple[str, Json, Json, Iterable[Any]]


def _read(scopes: Iterable[_Scope], read_item: Callable[[Any], Json], signal: Signal) -> Reading:
    reading = Reading()
    kept_bytes = 0
    for place, resource, scope, items in scopes:
        header = _header(resource, scope, signal)
        packer = _Packer(header, signal)
        for number, item in enumerate(items):
            try:
                kept = read_item(item)
                signal.check(kept, resource, scope)
                text = orjson.dumps(kept)
            except Malformed as error:
                reading.refuse(f"{place}.{signal.items}[{number}]", error)
                continue
            kept_bytes += len(header) + len(text)
            if kept_bytes > KEPT_BYTES:
                raise TooLarge(
                    f"its {signal.noun}s, each with its resource, take more than {KEPT_BYTES} bytes; send fewer at once"
                )
            reading.lines.extend(packer.add(text))
        reading.lines.extend(packer.rest())
    return reading


def _scopes_of_json(document: Any, signal: Signal) -> Iterator[_Scope]:
    for i, in_resource in enumerate(_list(document, signal.resources, "")):
        place = f"{signal.resources}[{i}]"
        resource = _part(in_resource, "resource", Resource.DESCRIPTOR, place)
        for j, in_scope in enumerate(_list(in_resource, signal.scopes, place)):
            inner_place = f"{place}.{signal.scopes}[{j}]"
            scope = _part(in_scope, "scope", InstrumentationScope.DESCRIPTOR, inner_place)
            yield inner_place, resource, scope, _list(in_scope, signal.items, inner_place)


def _scopes_of_message(request: Any, signal: Signal) -> Iterator[_Scope]:
    resources, scopes, items = (snake_case(name) for name in (signal.resources, signal.scopes, signal.items))
    for i, in_resource in enumerate(getattr(request, resources)):
        resource = document_of(in_resource.resource)
        for j, in_scope in enumerate(getattr(in_resource, scopes)):
            place = f"{signal.resources}[{i}].{signal.scopes}[{j}]"
            yield place, resource, document_of(in_scope.scope), getattr(in_scope, items)


def _list(value: Any, name: str, place: str) -> list[Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{place or 'the request'}: an object belongs here")
    items = value.get(name)
    if items is None:
        return []
    if not isinstance(items, list):
        raise Malformed(f"{place}{'.' if place else ''}{name}: a list belongs here")
    return items


def _part(value: Any, name: str, message: Any, place: str) -> Json:
    if not isinstance(value, dict):
        raise Malformed(f"{place}: an object belongs here")
    part = value.get(name)
    if part is None:
        return {}
    try:
        return checked(part, message)
    except Malformed as error:
        raise error.inside(f"{place}.{name}") from None


def _header(resource: Json, scope: Json, signal: Signal) -> bytes:
    opening = {signal.resources: [{"resource": resource, signal.scopes: [{"scope": scope, signal.items: []}]}]}
    return orjson.dumps(opening).removesuffix(b"]}]}]}")


class _Packer:
    """Puts the spans or records of one scope on lines, as many on each as make it neither long nor wasteful."""

    def __init__(self, header: bytes, signal: Signal) -> None:
        self._header = header
        self._is_traces = signal is TRACES
        self._most_items = max(1, 4 * LINE_BYTES // max(1, len(header)))
        self._items: list[bytes] = []
        self._size = 0

    def add(self, item: bytes) -> Iterator[Line]:
        """The lines that are full now."""
        if self._items and (self._size + len(item) > LINE_BYTES or len(self._items) >= self._most_items):
            yield from self.rest()
        self._items.append(item)
        self._size += len(item)

    def rest(self) -> Iterator[Line]:
        """The line that was begun, if there is one."""
        if not self._items:
            return
        count = len(self._items)
        text = self._header + b",".join(self._items) + b"]}]}]}\n"
        self._items, self._size = [], 0
        yield Line(text, count, 0) if self._is_traces else Line(text, 0, count)
