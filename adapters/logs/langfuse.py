"""Langfuse: observations and scores, as its API, its blob-storage export and its downloads write them.

A trace is a rollout. A generation is an LM call, the observations around it are its
modules; one that stands alone in its trace is its own module. Names may be in camel case
or with underscores.

Reference:
    Langfuse, "Blob storage export field reference" and the public API's Observation and Score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from tracetune.adapters.formats import DEFAULTS, FormatOptions, Line, Refused
from tracetune.adapters.logs.chat import answers_of, messages_of
from tracetune.adapters.logs.formats_seen import not_as_asked
from tracetune.adapters.logs.lines import LoggedSpan, call_attributes, score_line
from tracetune.adapters.logs.objects import objects
from tracetune.adapters.logs.values import dumped, example_of, fields_of, loaded, nanoseconds, span_hex
from tracetune.tracer import names

_KINDS = {
    "GENERATION": "lm",
    "SPAN": "module",
    "AGENT": "module",
    "CHAIN": "module",
    "EVALUATOR": "module",
    "GUARDRAIL": "module",
    "TOOL": "tool",
    "RETRIEVER": "tool",
    "EMBEDDING": None,
    "EVENT": None,
}
_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")
# What becomes a column, or says what a column says; the rest is kept as an attribute.
_READ = {
    "id", "trace_id", "parent_observation_id", "type", "name", "start_time", "end_time", "input", "output", "level",
    "status_message", "model", "provided_model_name", "model_parameters", "usage_details", "usage", "project_id",
    "created_at", "updated_at", "latency", "time_to_first_token", "internal_model_id", "model_id",
}  # fmt: skip


def read(file: BinaryIO, options: FormatOptions = DEFAULTS) -> Iterator[Line | Refused]:
    """The spans and scores of a file, and what in it cannot be read."""
    for found in objects(file):
        if isinstance(found, Refused):
            yield found
        else:
            yield from _object(*found, options)


def _object(place: str, value: Mapping[str, Any], options: FormatOptions) -> Iterator[Line | Refused]:
    item = {_CAPITAL.sub(r"_\1", str(name)).lower(): field for name, field in value.items()}
    try:
        if item.get("type") in _KINDS and item.get("trace_id"):
            yield _observation(item)
        elif item.get("trace_id") and "name" in item and ({"value", "string_value"} & item.keys()):
            yield _score(item, options)
        elif any(isinstance(item.get(part), list) for part in ("observations", "scores", "data")):
            yield from _container(place, item, options)
        elif "id" in item and {"timestamp", "session_id", "bookmarked"} & item.keys():
            return  # a trace without its observations: they say all that it says
        else:
            yield not_as_asked(place, value, "langfuse", "an observation, a score or a trace of Langfuse")
    except (ValueError, TypeError, KeyError) as error:
        yield Refused(place, str(error))


def _container(place: str, item: Mapping[str, Any], options: FormatOptions) -> Iterator[Line | Refused]:
    """A trace with what belongs to it, or a page of the API."""
    trace = item["trace"] if isinstance(item.get("trace"), Mapping) else item
    for part in ("observations", "scores", "data"):
        inner = item.get(part)
        for number, value in enumerate(inner if isinstance(inner, list) else ()):
            where = f"{place}, {part}[{number}]"
            if not isinstance(value, dict):
                yield Refused(where, f"an object belongs here, not {type(value).__name__}")
            else:
                known = {"trace_id": trace["id"]} if part != "data" and trace.get("id") else {}
                yield from _object(where, {**known, **value}, options)


def _observation(item: Mapping[str, Any]) -> Line:
    kind = _KINDS[item["type"]]
    parent = item.get("parent_observation_id") or None
    started = nanoseconds(item["start_time"])
    trace, identity = str(item["trace_id"]), f"langfuse/{item['trace_id']}/{item['id']}"
    name = str(item.get("name") or item["type"].lower())
    attributes: dict[str, Any] = {
        f"langfuse.{key}": field if isinstance(field, str) else dumped(field)
        for key, field in item.items()
        if key not in _READ and field not in (None, "", [], {})
    }
    if kind == "lm":
        attributes |= _call(item)
        if parent is None:
            attributes |= {
                names.MODULE: name,
                names.EXECUTION: span_hex(identity),
                names.EXAMPLE_ID: example_of(messages_of(item.get("input"))),
            }
    else:
        attributes[names.INPUT] = _value(item.get("input"))
        attributes[names.OUTPUT] = _value(item.get("output"))
        if kind == "module" and parent is None:
            kind = "program"
    failed = item.get("level") == "ERROR"
    return LoggedSpan(
        trace=trace,
        id=identity,
        parent=f"langfuse/{item['trace_id']}/{parent}" if parent else None,
        name=name,
        kind=kind,
        started_at=started,
        ended_at=nanoseconds(item["end_time"]) if item.get("end_time") else started,
        attributes=attributes,
        error=str(item.get("status_message") or "") if failed else None,
    ).line()


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    usage = fields_of(item.get("usage_details")) or fields_of(item.get("usage"))
    return call_attributes(
        messages_of(loaded(item.get("input"))),
        answers_of(item.get("output")),
        model=item.get("model") or item.get("provided_model_name"),
        sampling=fields_of(item.get("model_parameters")),
        input_tokens=usage.get("input"),
        output_tokens=usage.get("output"),
    )


def _score(item: Mapping[str, Any], options: FormatOptions) -> Line:
    value = item.get("value")
    if item.get("data_type") == "CATEGORICAL" or not isinstance(value, int | float):
        category = item.get("string_value") or value
        raise ValueError(f"the score {item['name']!r} is {category!r:.60}, a category; only numbers are kept")
    observation = item.get("observation_id") or None
    moment = item.get("timestamp") or item.get("created_at")
    return score_line(
        str(item["trace_id"]),
        "reward" if item["name"] == options.reward else str(item["name"]),
        value,
        source="langfuse",
        record=str(item.get("id") or f"{item['trace_id']}/{observation}/{item['name']}"),
        time=nanoseconds(moment) if moment else 0,
        call=f"langfuse/{item['trace_id']}/{observation}" if observation else None,
        feedback=item.get("comment"),
    )


def _value(value: Any) -> str | None:
    return None if value is None else dumped(loaded(value))
