"""Whatever a foreign span says, it is kept: nothing that OTLP allows makes it be set aside."""

from __future__ import annotations

import json

import pytest
from conventions.otlp_lines import foreign_span
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetune.grouping.columns import CALLS, SPANS
from tracetune.grouping.conventions.sources import Event, Events, Indexed
from tracetune.grouping.conventions.table import TABLE
from tracetune.grouping.ingest.otlp import decode
from tracetune.grouping.ingest.records import arrow_table

SOURCES = [source for row in TABLE for source in row.sources]
NAMES = sorted({source for source in SOURCES if isinstance(source, str)} | {"llm.invocation_parameters"})
PREFIXES = sorted({source.prefix for source in SOURCES if isinstance(source, Indexed)})
EVENTS = sorted(
    {source.event for source in SOURCES if isinstance(source, Event)}
    | {name for source in SOURCES if isinstance(source, Events) for name in source.events}
)
INDEXES = st.sampled_from(["0", "1", "3", "999999", "1000000000000", "-1", "01", "x", "", "\u0661"])
LEAVES = st.sampled_from(
    [
        "message.role", "message.content", "message.contents.0.message_content.text", "role", "content",
        "message.tool_calls.7.tool_call.function.name", "tool_calls.0.arguments", "tool_calls", "message",
        "finish_reason", "prompt.text", "completion.text", "",
    ]
)  # fmt: skip
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "tool", 3, None]),
        "content": st.sampled_from(["hi", None, 3, [{"type": "text"}], '[{"type": "text", "text": "x"}]']),
        "parts": st.sampled_from([[], None, "x", [3], [{"type": "text"}], [{"type": "text", "content": 3}]])
        | st.just([{"type": "tool_call_response", "result": {"a": 1}}, {"type": "tool_call", "arguments": [1]}]),
        "finish_reason": st.sampled_from(["stop", 3, None]),
        "tool_calls": st.sampled_from([[], "x", [3], [{"id": "1"}]]),
    },
)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.sampled_from(
        [0.5, 1e300, "", "hi", "NaN", "[", "{}", "[1]", "null", '{"a": ', "1e999", "99999999999999999999"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.lists(MESSAGE, max_size=3)
    | st.lists(MESSAGE, max_size=3).map(json.dumps)
    | st.dictionaries(st.sampled_from(["model", "n", "stop", "id", "choices", "messages"]), st.just([3]), max_size=2)
)
SPAN_NAMES = st.sampled_from(["chat", "RunnableSequence", ""])
KINDS = st.sampled_from(
    [{}, {"openinference.span.kind": "LLM"}, {"gen_ai.operation.name": "chat"}, {"traceloop.span.kind": "task"}]
)


@settings(max_examples=200)
@given(
    name=SPAN_NAMES,
    kind=KINDS,
    plain=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6),
    numbered=st.dictionaries(st.tuples(st.sampled_from(PREFIXES), INDEXES, LEAVES), VALUES, max_size=6),
    events=st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.dictionaries(
                st.sampled_from(["content", "role", "index", "message", "tool_calls", "gen_ai.event.content", *NAMES]),
                VALUES,
                max_size=3,
            ),
        ),
        max_size=3,
    ),
    parent=st.sampled_from([None, 1]),
)
def test_no_attribute_makes_a_span_be_set_aside(name, kind, plain, numbered, events, parent):
    """Any values under any names of the table give rows that fit, and what was not read is kept as it came."""
    flat = {f"{prefix}.{index}.{leaf}": value for (prefix, index, leaf), value in numbered.items()}
    line = foreign_span(name, 2, {**kind, **plain, **flat, "session.id": "s"}, parent=parent, events=events)
    decoded = decode([(0, line)])
    assert decoded.rejected == []
    (row,) = arrow_table(SPANS, decoded.spans).to_pylist()
    kept = json.loads(row["attributes"] or "{}")
    assert kept.pop("session.id") == "s"
    calls = arrow_table(CALLS, decoded.calls).to_pylist()
    assert {call["call_id"] for call in calls} >= ({row["span_id"]} if row["kind"] == "lm" else set())
    if all(call[column] is None for call in calls for column in ("messages", "completion", "finish_reason")):
        told = {name: value for name, value in flat.items() if value != ""}
        assert told == {name: kept.get(name) for name in told}


def decoded_call(attributes):
    """The first call of a foreign LM span, and the attributes that were kept."""
    decoded = decode([(0, foreign_span("chat", 2, {"gen_ai.operation.name": "chat", **attributes}, parent=1))])
    assert decoded.rejected == []
    call = dict(zip(CALLS.names, decoded.calls[0], strict=True))
    kept = dict(zip(SPANS.names, decoded.spans[0], strict=True))["attributes"]
    return call, json.loads(kept) if kept else {}


USER = {"role": "user", "content": "who?"}
PARTS = {"role": "user", "parts": [{"type": "text", "content": "who?"}]}


@pytest.mark.parametrize(
    ("attributes", "messages", "truncated"),
    [
        ({"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": "who?", "gen_ai.prompt.2.content": "x"},
         [USER, {"role": "user", "content": "x"}], True),
        ({"gen_ai.prompt.1000000.role": "user", "gen_ai.prompt.1000000.content": "who?"}, [USER], True),
        ({"gen_ai.prompt.9999999999.role": "user"}, None, False),
        ({"gen_ai.prompt.x.role": "user"}, None, False),
        ({"gen_ai.input.messages": json.dumps([PARTS])[:-9]}, None, False),
        ({"gen_ai.input.messages": json.dumps([PARTS, {"role": "user"}])}, [USER], True),
        ({"gen_ai.input.messages": json.dumps([PARTS, 3])}, [USER], True),
        ({"gen_ai.input.messages": "[" * 300 + "]" * 300}, None, False),
        ({"gen_ai.prompt": "{who?"}, None, False),
    ],
)  # fmt: skip
def test_what_can_be_read_is_read_and_the_rest_is_kept(attributes, messages, truncated):
    """Gaps, cut JSON and indexes beyond reason cost what they hide, and the attribute stays as it came."""
    call, kept = decoded_call(attributes)
    assert (json.loads(call["messages"] or "null"), call["truncated"]) == (messages, truncated)
    assert {name: kept.get(name) for name in attributes} == attributes


def test_what_was_read_whole_is_not_kept_twice():
    """Nothing is left of attributes that columns hold altogether."""
    flat = {"llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "who?"}
    told = {"llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "ann"}
    call, kept = decoded_call({**flat, **told, "llm.invocation_parameters": '{"temperature": 0.5}'})
    assert (call["messages"], call["completion"]) == ('[{"role":"user","content":"who?"}]', "ann")
    assert (call["sampling"], kept) == ('{"temperature":0.5}', {})


def test_names_that_disagree_are_both_kept():
    """The preferred one fills the column; the other stays, since it says something else."""
    call, kept = decoded_call({"gen_ai.request.model": "a", "llm.request.model_name": "b"})
    assert (call["model"], kept) == ("a", {"llm.request.model_name": "b"})
