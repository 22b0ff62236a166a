"""OpenInference: spans as Phoenix exports them, as JSON objects or as a dataframe's rows in Parquet.

Only the shape is undone here, into one attribute a field as OpenInference has them on the
wire. What the attributes mean is read by the store, as for spans that came by OTLP.

Reference:
    OpenInference's semantic conventions; Phoenix's span schema and `get_spans_dataframe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode

from tracetune.adapters.formats import DEFAULTS, FormatOptions, Line, Refused
from tracetune.adapters.logs.formats_seen import not_as_asked
from tracetune.adapters.logs.objects import objects
from tracetune.adapters.logs.values import dumped, fields_of, nanoseconds, span_number, trace_number
from tracetune.tracer import encoding

_SCOPE = InstrumentationScope("openinference")
_RESOURCE = Resource.get_empty()
_PREFIX = "attributes."
_KIND = "openinference.span.kind"
# Attributes that are one JSON text on the wire, whatever they hold.
_TEXTS = ("metadata", "llm.invocation_parameters", "llm.prompt_template.variables", "input.value", "output.value")


def read(file: BinaryIO, options: FormatOptions = DEFAULTS) -> Iterator[Line | Refused]:
    """The spans of a file, and what in it cannot be read."""
    for found in objects(file):
        if isinstance(found, Refused):
            yield found
            continue
        place, span = found
        context = fields_of(span.get("context"))
        trace = context.get("trace_id") or span.get("context.trace_id")
        identity = context.get("span_id") or span.get("context.span_id")
        if not trace or not identity:
            yield not_as_asked(place, span, "openinference", "a span with its context")
            continue
        try:
            yield _span(span, str(trace), str(identity))
        except (ValueError, TypeError, KeyError) as error:
            yield Refused(place, str(error))


def _span(span: Mapping[str, Any], trace: str, identity: str) -> Line:
    number = trace_number(trace)
    parent = span.get("parent_id") or None
    started = nanoseconds(span["start_time"])
    attributes = _attributes(span)
    if span.get("span_kind") and not attributes.get(_KIND):
        attributes[_KIND] = str(span["span_kind"]).upper()
    failed = str(span.get("status_code", "")).upper().endswith("ERROR")
    text = encoding.span_line(
        ReadableSpan(
            str(span.get("name") or ""),
            context=SpanContext(number, span_number(identity), is_remote=False),
            parent=SpanContext(number, span_number(str(parent)), is_remote=False) if parent else None,
            attributes=attributes,
            events=_events(span.get("events")),
            start_time=started,
            end_time=nanoseconds(span["end_time"]) if span.get("end_time") else started,
            status=Status(StatusCode.ERROR, str(span.get("status_message") or "")) if failed else Status(),
            instrumentation_scope=_SCOPE,
            resource=_RESOURCE,
        )
    )
    return Line(text, 1, 0)


def _attributes(span: Mapping[str, Any]) -> dict[str, Any]:
    """One attribute a field, from nested objects or from a dataframe's columns."""
    flat: dict[str, Any] = {}
    for name, value in fields_of(span.get("attributes")).items():
        _flatten(str(name), value, flat)
    for name, value in span.items():
        if name.startswith(_PREFIX):
            _flatten(name.removeprefix(_PREFIX), value, flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, Any]) -> None:
    if value is None:
        return
    if name in _TEXTS:
        flat[name] = value if isinstance(value, str) else dumped(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(f"{name}.{key}", item, flat)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            _flatten(f"{name}.{index}", item, flat)
    elif isinstance(value, str | bool | int | float | list):
        flat[name] = value
    else:
        flat[name] = str(value)


def _events(value: Any) -> list[Event]:
    events = []
    for event in value if isinstance(value, list) else ():
        if isinstance(event, Mapping) and event.get("name"):
            said: dict[str, Any] = {}
            for name, item in (event.get("attributes") or {}).items():
                _flatten(str(name), item, said)
            moment = event.get("timestamp")
            events.append(Event(str(event["name"]), said, nanoseconds(moment) if moment else 0))
    return events
