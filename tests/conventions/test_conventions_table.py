"""The table of conventions: every name in it fills its column, and the documentation shows the same table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conventions.otlp_lines import foreign_span

from tracetune.grouping.columns import CALLS, SPANS
from tracetune.grouping.conventions.sources import Event, Events, Indexed, Member
from tracetune.grouping.conventions.table import TABLE
from tracetune.grouping.ingest.otlp import decode
from tracetune.tracer import names

PARTS = [{"role": "user", "parts": [{"type": "text", "content": "who?"}]}]
ANSWER = [{"role": "assistant", "parts": [{"type": "text", "content": "ann"}], "finish_reason": "stop"}]
CHAT = [{"role": "user", "content": "who?"}]

# What each source says in the tests, and what its column then holds.
PER_COLUMN = {
    names.KIND: ("tool", "tool"),
    names.OPERATION: ("chat", "chat"),
    "node": ("write_query", "write_query"),
    names.PROVIDER: ("OpenAI", "openai"),
    names.REQUEST_MODEL: ("policy", "policy"),
    names.RESPONSE_MODEL: ("policy-2", "policy-2"),
    names.RESPONSE_ID: ("r1", "r1"),
    names.INPUT_TOKENS: (3, 3),
    names.OUTPUT_TOKENS: ("4", 4),
    names.CHOICE_COUNT: (2, 2),
    names.FINISH_REASONS: (["stop"], "stop"),
    names.TEMPERATURE: (1, {"temperature": 1.0}),
    names.TOP_P: (0.5, {"top_p": 0.5}),
    names.TOP_K: (5, {"top_k": 5}),
    names.MAX_TOKENS: (64, {"max_tokens": 64}),
    names.SEED: (7, {"seed": 7}),
    names.STOP: (["END"], {"stop": ["END"]}),
    "messages": (json.dumps(PARTS), CHAT),
    "system": ('[{"type": "text", "content": "Be brief."}]', [{"role": "system", "content": "Be brief."}]),
    "choices": (json.dumps(ANSWER), "ann"),
    names.INPUT: ('{"a": 1}', {"a": 1}),
    names.OUTPUT: ("nine", "nine"),
    names.ERROR_TYPE: ("ValueError", "ValueError"),
    names.STEP: (3, 3),
    names.INVOCATION: (1, 1),
    names.TURN: (2, 2),
    names.UNORDERED: (True, True),
    names.LATE: (True, True),
    names.TRUNCATED: (["x"], ["x"]),
    names.REDACTED: (["x"], ["x"]),
    names.STATUS: ("format_error", "format_error"),
    names.CALL_KIND: ("score", "score"),
}
PER_SOURCE = {
    names.OPENINFERENCE_KIND: ("TOOL", "tool"),
    "kind gen_ai.operation.name": ("execute_tool", "tool"),
    "kind llm.request.type": ("chat", "lm"),
    "output.value > choices": ([{"finish_reason": "stop"}], "stop"),
    "input.value > messages": (CHAT, CHAT),
    "llm.input_messages.N": ({"message.role": "user", "message.content": "who?"}, CHAT),
    "gen_ai.prompt.N": ({"role": "user", "content": "who?"}, CHAT),
    "gen_ai.prompt": ("who?", CHAT),
    "llm.prompts.N": ({"prompt.text": "who?"}, CHAT),
    "llm.output_messages.N": ({"message.role": "assistant", "message.content": "ann"}, "ann"),
    "gen_ai.completion.N": ({"role": "assistant", "content": "ann"}, "ann"),
    "gen_ai.completion": ("ann", "ann"),
    "llm.choices.N": ({"completion.text": "ann"}, "ann"),
    "event gen_ai.content.prompt > gen_ai.prompt": ("who?", CHAT),
    "event gen_ai.content.completion > gen_ai.completion": ("ann", "ann"),
    "gen_ai.user.message": ({"content": "who?"}, CHAT),
    "gen_ai.system.message": ({"content": "who?"}, [{"role": "system", "content": "who?"}]),
    "gen_ai.developer.message": ({"content": "who?"}, [{"role": "developer", "content": "who?"}]),
    "gen_ai.assistant.message": ({"content": "who?"}, [{"role": "assistant", "content": "who?"}]),
    "gen_ai.tool.message": (
        {"content": "who?", "id": "t"},
        [{"role": "tool", "content": "who?", "tool_call_id": "t"}],
    ),
    "gen_ai.choice": ({"index": 0, "finish_reason": "stop", "message": '{"content":"ann"}'}, "ann"),
}
FIELDS = [(row, source) for row in TABLE for source in row.sources if not isinstance(source, Events)]
EVENTS = [(row, Events((name,))) for row in TABLE for s in row.sources if isinstance(s, Events) for name in s.events]


def place(source, said):
    """The attributes and the events of a span in which that source, and nothing else, says that."""
    if isinstance(source, Indexed):
        return {f"{source.prefix}.0.{name}": value for name, value in said.items()}, []
    if isinstance(source, Member):
        return {source.attribute: json.dumps({source.member: said, "other": 1})}, []
    if isinstance(source, Event):
        return {}, [(source.event, {source.attribute: said})]
    if isinstance(source, Events):
        return {}, [(source.events[0], said)]
    return {source: said}, []


def read(row, source, attributes, events):
    """The rows of `spans` and `calls` of one span of another instrumentation that the table's row is read on."""
    needed = {"call": {names.OPERATION: "chat"}, "node": {names.OPENINFERENCE_KIND: "AGENT"}}.get(row.of, {})
    failed = row.into == names.ERROR_TYPE
    line = foreign_span("a span", 2, {**needed, **attributes}, parent=1, events=events, failed=failed)
    decoded = decode([(0, line)])
    assert decoded.rejected == []
    calls = [dict(zip(CALLS.names, call, strict=True)) for call in decoded.calls]
    return dict(zip(SPANS.names, decoded.spans[0], strict=True)), calls[0] if calls else None


def said_and_meant(row, source):
    """What the source says in these tests, and what the column then holds."""
    name = source.events[0] if isinstance(source, Events) else str(source)
    for known in (PER_SOURCE.get(f"{row.column} {name}"), PER_SOURCE.get(name) if row.of != "other" else None):
        if known is not None:
            return known
    return PER_COLUMN.get(row.into, ("text", "text"))


def value_of(row, span, call):
    """What stands in the column."""
    value = call[row.column] if row.of == "call" and row.column in CALLS.names else span[row.column]
    is_json = row.column in ("messages", "sampling", "input", "output") and value is not None
    return json.loads(value) if is_json else value


@pytest.mark.parametrize(("row", "source"), FIELDS + EVENTS, ids=lambda given: getattr(given, "column", str(given)))
def test_each_name_of_the_table_fills_its_column(row, source):
    """A span of which only that name says anything has it in that column."""
    said, meant = said_and_meant(row, source)
    assert value_of(row, *read(row, source, *place(source, said))) == meant


@pytest.mark.parametrize(
    ("row", "source"),
    [(row, source) for row, source in FIELDS if isinstance(source, str) and row.of != "other"],
    ids=lambda given: getattr(given, "column", str(given)),
)
def test_what_cannot_be_read_stays_as_it_came(row, source):
    """A value that means nothing leaves the column as it would be without it, and itself among the attributes."""
    odd = {"odd": [True]}
    span, call = read(row, source, {source: odd}, [])
    without, other = read(row, source, {}, [])
    kept = json.loads(span["attributes"])
    if source != names.OPERATION or row.of not in ("call",):
        assert value_of(row, span, call or other) == value_of(row, without, other)
    assert kept[source] == odd


def test_the_documentation_shows_the_table():
    """Every row of the table, in its order, and none that is not there."""
    document = Path(__file__).parents[2] / "docs" / "conventions.md"
    lines = document.read_text(encoding="utf-8").splitlines()
    start = lines.index("| column | read on | names, the preferred ones first | what it says |")
    shown = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        shown.append(line)
    spans = {"any": "all", "call": "LM calls", "node": "nodes", "other": "all but LM calls"}
    assert shown == [
        f"| `{row.column}` | {spans[row.of]} | {', '.join(f'`{source}`' for source in row.sources)} | {row.meaning} |"
        for row in TABLE
    ]
