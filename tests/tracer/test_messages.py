"""Chat messages, to the GenAI conventions' parts and back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tracetune.tracer.messages import from_genai, to_genai

TEXT = st.text(max_size=8)
TOOL_CALL = st.fixed_dictionaries(
    {
        "id": TEXT,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT}),
    }
)
PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": TEXT})}),
)
CONTENT = st.one_of(st.none(), TEXT, st.lists(PART, max_size=3))
MESSAGE = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "developer"]), "content": CONTENT}, optional={"name": TEXT}
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={
            "content": CONTENT,
            "name": TEXT,
            "refusal": st.none() | TEXT,
            "tool_calls": st.lists(TOOL_CALL, max_size=2),
            "audio": st.fixed_dictionaries({"id": TEXT}),
        },
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "content": CONTENT, "tool_call_id": TEXT}),
    st.fixed_dictionaries({"role": st.just("function"), "content": st.none() | TEXT, "name": TEXT}),
)


@given(st.lists(MESSAGE, max_size=4))
def test_messages_come_back_as_they_went(messages: list[dict[str, Any]]) -> None:
    """No message loses anything on the way to the conventions' form, through JSON, and back."""
    assert from_genai(json.loads(json.dumps(to_genai(messages)))) == messages


def test_the_conventions_form() -> None:
    """Texts, tool calls and their results are parts, as the conventions name them."""
    call = {"id": "t1", "type": "function", "function": {"name": "search", "arguments": '{"query": "ann"}'}}
    messages = [
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t1", "content": "bob"},
    ]
    assert to_genai(messages) == [
        {"role": "user", "parts": [{"type": "text", "content": "who?"}]},
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "t1", "name": "search", "arguments": '{"query": "ann"}'}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "t1", "response": "bob"}]},
    ]


def test_what_the_conventions_cannot_say_travels_beside_the_parts() -> None:
    """The parts show what they can, and the message is kept as it was."""
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b"}}],
    }
    assert to_genai([message]) == [{"role": "user", "parts": [{"type": "text", "content": "a"}], "openai": message}]


def test_parts_of_other_instrumentations() -> None:
    """Arguments that came as an object are text again, as OpenAI has them; unknown parts stay what they were."""
    parts = [
        {"type": "tool_call", "id": "t1", "name": "search", "arguments": {"query": "ann"}},
        {"type": "reasoning", "content": "hm"},
    ]
    assert from_genai([{"role": "assistant", "parts": parts}]) == [
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "content": "hm"}],
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "search", "arguments": '{"query":"ann"}'}}
            ],
        }
    ]
