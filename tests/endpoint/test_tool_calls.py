"""Tools: shown to the model, and its calls read out of what it says, whole and streamed."""

from __future__ import annotations

import json
import re

import openai
import pytest
from reciting_llama import recite

from tracetune.trainers.endpoint.tool_calls import HERMES, LLAMA, MISTRAL

CALLS = {
    "hermes": "<tool_call>{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}</tool_call>",
    "mistral": "[TOOL_CALLS] [{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}]",
    "llama": "{{ {'name': c.function.name, 'parameters': c.function.arguments} | tojson }}",
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Find pages.",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
        "strict": True,
    },
}
CALLED = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
ASK = [{"role": "user", "content": "Who?"}]
# What the model says in pieces, what is left as text, and the calls that are read from it.
SAID = {
    "hermes": (
        [
            "Let me see",
            ". <to",
            "ol_call>",
            '\n{"name": "search", ',
            '"arguments": {"query": "a <b>"}}\n</tool',
            "_call>",
        ],
        "Let me see. ",
        [("search", {"query": "a <b>"})],
    ),
    "hermes, two": (
        [
            *("<tool_call>", '{"name":"search","arguments":{"query":"a"}}', "</tool_call>", "\n"),
            *("<tool_call", '>{"name":"search",', '"arguments":{"query":"b"}}</tool_call>'),
        ],
        None,
        [("search", {"query": "a"}), ("search", {"query": "b"})],
    ),
    "hermes, broken": (["<tool_call>", '{"name": "search", "argum', "</tool_call>"], None, []),
    "hermes, text": (["Just ", "a < b", " and <tool", " sheds"], None, []),
    "mistral": (
        ["[TOOL_CALLS]", ' [{"name": "search", "argu', 'ments": {"query": "x"}}]'],
        None,
        [("search", {"query": "x"})],
    ),
    "mistral, new": (
        ["Well. ", "[TOOL_CALLS]", "search", "[ARGS]", '{"query": "x"}'],
        "Well. ",
        [("search", {"query": "x"})],
    ),
    "llama": (['{"name": "search", ', '"parameters": {"query": ', '"x"}}'], None, [("search", {"query": "x"})]),
    "llama, tag": (["<|python_tag|>", '{"name": "other", "parameters": {}}'], None, [("other", {})]),
    "llama, json": (['{"name": "Bob"', ', "age": 7}'], None, []),
}


def template(form):
    """A chat template that shows tools, and writes calls in that form."""
    return (
        "{% for tool in tools or [] %}TOOL {{ tool | tojson }}\n{% endfor %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}" + CALLS[form] + "{% endfor %}{% endfor %}<assistant>"
    )


def served(serve, connect, case):
    """A client of a model that says what the case has."""
    model, tokenizer = recite(template(case.split(",")[0]), SAID[case][0])
    return connect(serve(model=model, tokenizer=tokenizer)), tokenizer


def calls_of(message):
    """Names and arguments of a message's calls."""
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


@pytest.mark.parametrize("case", SAID)
def test_calls_are_read_in_the_form_that_the_template_writes(serve, connect, journal, case):
    """Calls come as tool_calls, what is no call stays text, and the record keeps all that was said."""
    client, _ = served(serve, connect, case)
    pieces, said, calls = SAID[case]
    response = client.chat.completions.create(model="policy", messages=ASK, tools=[SEARCH], temperature=0)
    choice = response.choices[0]
    whole = "".join(pieces)
    assert calls_of(choice.message) == calls
    assert choice.message.content == (said if calls else whole)
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    assert all(re.fullmatch("[0-9A-Za-z]{9}", call.id) for call in choice.message.tool_calls or [])
    (record,) = journal.completions
    assert (record.text, record.finish_reason) == (whole, "stop")
    assert len(record.completion_token_ids) == len(pieces) + 1


@pytest.mark.parametrize("case", SAID)
def test_a_stream_tells_the_same_as_the_whole_answer(serve, connect, case):
    """The openai client puts the same message together from chunks, and text comes as it is said."""
    client, _ = served(serve, connect, case)
    pieces, said, calls = SAID[case]
    with client.chat.completions.stream(model="policy", messages=ASK, tools=[SEARCH], temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        choice = stream.get_final_completion().choices[0]
    whole = "".join(pieces)
    assert calls_of(choice.message) == calls
    assert (choice.message.content or None) == (said if calls else whole)
    assert choice.finish_reason == ("tool_calls" if calls else "stop")
    if case == "hermes":
        assert [text for text in texts if text] == ["Let me see", ". "]


def test_tools_and_earlier_calls_are_shown_as_the_template_has_them(serve, connect, journal):
    """The prompt has the tools without `strict`, and a call that is sent back with its answer."""
    client, tokenizer = served(serve, connect, "hermes")
    messages = [*ASK]
    response = client.chat.completions.create(model="policy", messages=messages, tools=[SEARCH], temperature=0)
    message = response.choices[0].message
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Ann"}
    client.chat.completions.create(
        model="policy", messages=[*messages, message, answer], tools=[SEARCH], tool_choice="auto", temperature=0
    )
    shown = {
        "type": "function",
        "function": {key: SEARCH["function"][key] for key in ("name", "description", "parameters")},
    }
    expected = (
        f"TOOL {json.dumps(shown)}\n<user>Who?<assistant>Let me see. "
        '<tool_call>{"name": "search", "arguments": {"query": "a <b>"}}</tool_call><tool>Ann<assistant>'
    )  # fmt: skip
    assert tokenizer.decode(journal.completions[1].prompt_token_ids) == expected


def test_tool_choice_none_offers_nothing_and_reads_nothing(serve, connect, journal):
    """What looks like a call is text then, and the prompt is the one without tools."""
    client, tokenizer = served(serve, connect, "hermes")
    response = client.chat.completions.create(
        model="policy", messages=ASK, tools=[SEARCH], tool_choice="none", temperature=0
    )
    assert response.choices[0].message.content == "".join(SAID["hermes"][0])
    assert tokenizer.decode(journal.completions[0].prompt_token_ids) == "<user>Who?<assistant>"


def test_without_parallel_calls_only_the_first_counts(serve, connect):
    """A program that takes one call at a time gets one."""
    client, _ = served(serve, connect, "hermes, two")
    response = client.chat.completions.create(
        model="policy", messages=ASK, tools=[SEARCH], parallel_tool_calls=False, temperature=0
    )
    assert calls_of(response.choices[0].message) == [("search", {"query": "a"})]


def test_a_call_that_is_cut_short_stays_text(serve, connect):
    """At the limit of tokens a call that has not ended is no call, and the reason is the limit."""
    client, _ = served(serve, connect, "hermes")
    choice = client.chat.completions.create(
        model="policy", messages=ASK, tools=[SEARCH], max_tokens=4, temperature=0
    ).choices[0]
    assert choice.message.content == "".join(SAID["hermes"][0][:4])
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "length")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice", "required"),
        ({"tool_choice": {"type": "function", "function": {"name": "search"}}}, "tool_choice", "search"),
        ({"tools": [{"type": "function"}]}, "tools", "function"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "tool_call_id"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages", "no content"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALLED]}]}, "messages", "only an assistant"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(serve, connect, change, param, words):
    """Choices that would have to be forced, and messages that make no sense, get 400."""
    client, _ = served(serve, connect, "hermes")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "policy", "messages": ASK, "tools": [SEARCH], **change})
    assert caught.value.param == param
    assert words in caught.value.message


def test_a_template_that_shows_no_tools_is_not_trusted_with_them(client):
    """Tools that the model would never see are refused, and so are calls that it would not."""
    with pytest.raises(openai.BadRequestError, match="shows it no tools"):
        client.chat.completions.create(model="policy", messages=ASK, tools=[SEARCH])
    with pytest.raises(openai.BadRequestError, match="shows it no tool calls"):
        client.chat.completions.create(model="policy", messages=[*ASK, {"role": "assistant", "tool_calls": [CALLED]}])


@pytest.mark.parametrize("form", [HERMES, MISTRAL, LLAMA])
@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[TOOL_CALLS]", "[TOOL_CALLS][", "<tool_call></tool_call>", "[[" * 5000, "<tool_call>" + "[" * 100_000,
        '{"name": "search", "arguments": {"x": NaN}}', '{"name": 7}', '{"name": "search", "arguments": [1]}',
        '[TOOL_CALLS]search[ARGS]{"a": 1} and more', '<tool_call>{"name": "search", "arguments": "{"}</tool_call>',
        '{"name": "search", "arguments": {"x": "\\ud800"}}', '<|python_tag|>print("x")',
    ],
)  # fmt: skip
def test_what_is_no_call_stays_the_text_that_it_is(form, text):
    """Nonsense in any form is text, to the letter."""
    assert form.read(text, {"search"}) == (text, [])
