"""Spans of other instrumentations, read by the table of conventions.

What was read whole is taken out of a span's attributes; what cannot be read stays there
as it came, and so does whatever says more than its column holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from tracetune.grouping.conventions.sources import Event, Events, Indexed, Member, RawSpan, Source
from tracetune.grouping.conventions.table import CHOICES, KINDS, MESSAGES, NODE, SYSTEM, TABLE, Row, kind_of
from tracetune.grouping.conventions.values import Partly
from tracetune.tracer import names

Choice = tuple[str | None, str | None]

_NODE_KINDS = ("program", "module", "tool")
# LangChain's wrappers stand between a node and its call, and name neither.
_PLUMBING = "Runnable"
_KIND_ROW = TABLE[0]
_SIGNS_OF_A_CALL: tuple[Source, ...] = (
    names.REQUEST_MODEL,
    Indexed("llm.input_messages"),
    Indexed("gen_ai.prompt"),
    "gen_ai.prompt",
)


@dataclass(slots=True)
class Reading:
    """What a foreign span says, by our names; its prompt and its choices where it is an LM call."""

    said: dict[str, Any] = field(default_factory=dict)
    messages: str | None = None
    choices: list[Choice] = field(default_factory=list)


def read_foreign(
    name: str, attributes: dict[str, Any], events: list[tuple[str, dict[str, Any]]], *, is_root: bool
) -> Reading:
    """Read a span by the table, and take what was read whole out of its attributes.

    Example:
        >>> attributes = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 3, "session.id": "s"}
        >>> read_foreign("ChatCompletion", attributes, [], is_root=False).said["gen_ai.usage.input_tokens"]
        3
        >>> attributes
        {'openinference.span.kind': 'LLM', 'session.id': 's'}
    """
    raw = RawSpan(attributes, events)
    kind = _kind_of(raw, name, is_root=is_root)
    said = _read(raw, kind)
    if kind is not None:
        said[names.KIND] = kind
    if NODE in said:
        said.setdefault(names.MODULE, said.pop(NODE))
    return _content(said) if kind == "lm" else Reading(said)


def read_events(events: list[tuple[str, dict[str, Any]]]) -> Reading:
    """What events say of an LM call that were recorded beside its span, in the order of time.

    Example:
        >>> read_events([("gen_ai.user.message", {"content": "who?"})]).messages
        '[{"role":"user","content":"who?"}]'
    """
    return _content(_read(RawSpan({}, events), "lm"))


def _read(raw: RawSpan, kind: str | None) -> dict[str, Any]:
    """What stands in the places that are read on one kind of span, by our names."""
    said: dict[str, Any] = {}
    cut: set[str] = set()
    for row, source in _PLACES[kind].present(raw):
        found = raw.find(source)
        if found is not None:
            _take(row, source, found, raw, said, cut)
    if cut:
        said[names.TRUNCATED] = sorted({*said.get(names.TRUNCATED, ()), *cut})
    return said


def _kind_of(raw: RawSpan, name: str, *, is_root: bool) -> str | None:
    stamp = raw.attributes.get(names.KIND)
    if isinstance(stamp, str) and stamp in KINDS:
        return KINDS[raw.attributes.pop(names.KIND)]  # a stamp of ours stands, whatever else is said
    for source in _KIND_ROW.sources:
        found = raw.find(source)
        try:
            kind: str = kind_of(found).value
        except (TypeError, ValueError):
            continue
        if kind == "module" and is_root:
            return "program"
        return None if kind == "module" and name.startswith(_PLUMBING) else kind
    # The oldest emitters name no operation, and say what model was asked.
    is_named = any(raw.find(source) is not None for source in _KIND_ROW.sources)
    return None if is_named or not any(raw.find(source) is not None for source in _SIGNS_OF_A_CALL) else "lm"


def _take(row: Row, source: Source, found: Any, raw: RawSpan, said: dict[str, Any], cut: set[str]) -> None:
    try:
        read = row.read(found)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return
    value = read.value if isinstance(read, Partly) else read
    if said.setdefault(row.into, value) != value:
        return  # a name that is less preferred says something else
    if not isinstance(read, Partly):
        raw.drop(source)
    elif read.is_cut:
        cut.add(str(source))


def _content(said: dict[str, Any]) -> Reading:
    prompt, system = said.pop(MESSAGES, None), said.pop(SYSTEM, None)
    if system is not None:
        prompt = [system, *(prompt or ())]
    reasons = said.pop(names.FINISH_REASONS, [])
    reasons = [reason or None for reason in reasons]
    choices = [
        (text, reason or (reasons[index] if index < len(reasons) else None))
        for index, (text, reason) in enumerate(said.pop(CHOICES, ()))
    ]
    written = orjson.dumps(prompt).decode() if prompt is not None else None
    return Reading(said, written, choices or [(None, reason) for reason in reasons or [None]])


def _read_on(row: Row, kind: str | None) -> bool:
    return row is not _KIND_ROW and (
        row.of == "any"
        or ((row.of == "call") == (kind == "lm") and row.of != "node")
        or (row.of == "node" and kind in _NODE_KINDS)
    )


class _Places:
    """The places of the table that are read on one kind of span, in the table's order.

    A span has a few of its many names, so those that it has are looked up, not those it might have.
    """

    def __init__(self, kind: str | None) -> None:
        self._places = [(row, source) for row in TABLE if _read_on(row, kind) for source in row.sources]
        self._by_attribute: dict[str, list[int]] = {}
        self._flat, self._of_events = [], []
        for number, (_, source) in enumerate(self._places):
            if isinstance(source, Indexed):
                self._flat.append(number)
            elif isinstance(source, Event | Events):
                self._of_events.append(number)
            else:
                attribute = source.attribute if isinstance(source, Member) else source
                self._by_attribute.setdefault(attribute, []).append(number)

    def present(self, raw: RawSpan) -> list[tuple[Row, Source]]:
        """Those where a span may say something."""
        names_here = self._by_attribute.keys() & raw.attributes.keys()
        numbers = [number for name in names_here for number in self._by_attribute[name]]
        if raw.lists:
            numbers += self._flat
        if raw.events:
            numbers += self._of_events
        return [self._places[number] for number in sorted(numbers)]


_PLACES = {kind: _Places(kind) for kind in (None, "lm", *_NODE_KINDS)}
