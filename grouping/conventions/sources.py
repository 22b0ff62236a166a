"""Where a foreign span says something: in an attribute, in many numbered ones, inside JSON, in an event.

A source is a place that the table of conventions names; `RawSpan` finds what stands
there, and takes out what became a column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import orjson


class Indexed(NamedTuple):
    """Numbered attributes, as in `llm.input_messages.0.message.role`: a list written flat."""

    prefix: str

    def __str__(self) -> str:
        return f"{self.prefix}.N"


class Member(NamedTuple):
    """A member of an attribute whose value is a JSON object."""

    attribute: str
    member: str

    def __str__(self) -> str:
        return f"{self.attribute} > {self.member}"


class Event(NamedTuple):
    """An attribute of the span's last event of that name."""

    event: str
    attribute: str

    def __str__(self) -> str:
        return f"event {self.event} > {self.attribute}"


class Events(NamedTuple):
    """All of the span's events of these names, in their order, each with its attributes."""

    events: tuple[str, ...]

    def __str__(self) -> str:
        return "events " + ", ".join(self.events)


Source = str | Indexed | Member | Event | Events

# A number beyond nine digits is no index; nor is one in other scripts' digits, or with zeros before it.
_NUMBERED = re.compile(
    r"(llm\.(?:input_messages|output_messages|prompts|choices)|gen_ai\.(?:prompt|completion))\.(0|[1-9][0-9]{0,8})\.(.+)",
    re.DOTALL,
)


class RawSpan:
    """A span's attributes and events, as they came.

    Attributes:
        attributes: those that have not become a column yet; changed in place.
    """

    def __init__(self, attributes: dict[str, Any], events: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.attributes = attributes
        self.events = events
        self._objects: dict[str, dict[str, Any]] = {}

    def find(self, source: Source) -> Any:
        """What stands there; None where nothing does."""
        if isinstance(source, str):
            return self.attributes.get(source)
        if isinstance(source, Member):
            return self._object(source.attribute).get(source.member) if source.attribute in self.attributes else None
        if isinstance(source, Indexed):
            return self.lists.get(source.prefix)
        if isinstance(source, Event):
            for name, attributes in reversed(self.events):
                if name == source.event and source.attribute in attributes:
                    return attributes[source.attribute]
            return None
        return [event for event in self.events if event[0] in source.events] or None

    def drop(self, source: Source) -> None:
        """It has become a column. Events are kept whole, in a column of their own."""
        if isinstance(source, str):
            self.attributes.pop(source, None)
        elif isinstance(source, Member):
            members = self._object(source.attribute)
            members.pop(source.member, None)
            if not members:
                self.attributes.pop(source.attribute, None)
        elif isinstance(source, Indexed):
            for name in [name for name in self.attributes if name.startswith(source.prefix + ".")]:
                if _NUMBERED.fullmatch(name):
                    del self.attributes[name]

    def _object(self, attribute: str) -> dict[str, Any]:
        if attribute not in self._objects:
            value = self.attributes.get(attribute)
            try:
                value = orjson.loads(value) if isinstance(value, str) else value
            except orjson.JSONDecodeError:
                value = None
            self._objects[attribute] = dict(value) if isinstance(value, dict) else {}
        return self._objects[attribute]

    @cached_property
    def lists(self) -> dict[str, dict[int, dict[str, Any]]]:
        """The numbered attributes: by prefix, then by index, then by the rest of their names."""
        lists: dict[str, dict[int, dict[str, Any]]] = {}
        for name, value in self.attributes.items():
            if name.startswith(("llm.", "gen_ai.")) and (match := _NUMBERED.fullmatch(name)):
                prefix, index, rest = match.groups()
                lists.setdefault(prefix, {}).setdefault(int(index), {})[rest] = value
        return lists
