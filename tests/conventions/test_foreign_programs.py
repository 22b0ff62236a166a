"""One program, seen by five instrumentations, is the same rows.

The JSON files beside this one hold what real emitters wrote of it; each names them.
The program asks for a tool call, makes it, and asks for two answers; then comes a call
outside it that fails.
"""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
from conventions.otlp_lines import foreign_span
from store.spool_lines import write_segment

import tracetune as tt
from tracetune.grouping import Store
from tracetune.tracer.calls import Choice, LMCall

EMITTERS = ("genai_current", "genai_older", "openinference", "traceloop")
QUESTION = "How warm is Paris?"
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": '{"city":"Paris"}'}}
ASK = [{"role": "system", "content": "Use the tool."}, {"role": "user", "content": QUESTION}]
TELL = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "9 C"},
]
CALLS = """
    SELECT calls.*, input_tokens, output_tokens, provider, choice_count
    FROM (SELECT call_id, module, key, invocation, turn, choice, kind, status, model, response_id, messages, completion,
                 finish_reason, sampling, truncated, cached, unordered FROM calls) AS calls
    JOIN spans ON spans.span_id = split_part(call_id, '.', 1)
    WHERE model <> 'broken'
    ORDER BY calls.module, choice
"""
TREE = """
    SELECT coalesce(spans.module, spans.name) AS name, spans.kind, above.kind AS parent_kind
    FROM spans LEFT JOIN spans AS above ON above.span_id = spans.parent_span_id
    WHERE spans.kind <> 'lm' ORDER BY name
"""


def emitted(name):
    """What an emitter wrote, as one line."""
    document = json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))
    del document["emitter"]
    return orjson.dumps(document)


def rows(store, query):
    """A query's rows without their ids, and with JSON read."""
    found = store.sql(query).rows()
    for row in found:
        row.pop("call_id", None)
        for name in ("messages", "sampling"):
            if row.get(name) is not None:
                row[name] = json.loads(row[name])
    return found


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The store of the program as our own decorators and adapters record it."""

    @tt.module
    def write_query(question):
        call = LMCall.begin(ASK, "policy", {"temperature": 0.5, "max_tokens": 64, "seed": 7})
        message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
        usage = {"input_tokens": 21, "output_tokens": 7}
        call.end(response_id="chatcmpl-1", choices=[Choice("", "tool_calls", message)], **usage)

    @tt.tool
    def lookup(city):
        return "9 C"

    @tt.module
    def write_answer(question):
        call = LMCall.begin(TELL, "policy", {"temperature": 0.5, "top_p": 0.9, "stop": ["END"], "n": 2})
        choices = [Choice("It is 9 degrees.", "stop"), Choice("Nine degrees in", "length")]
        call.end(response_id="chatcmpl-2", choices=choices, input_tokens=21, output_tokens=7)
        return choices[0].text

    @tt.program
    def weather(question):
        write_query(question)
        lookup("Paris")
        return write_answer(question)

    path = tmp_path_factory.mktemp("own") / "traces.duckdb"
    with tt.record(path):
        weather(QUESTION)
    return Store(path)


@pytest.fixture(scope="module", params=EMITTERS)
def emitter(request):
    """The name of an emitter."""
    return request.param


@pytest.fixture(scope="module")
def foreign(emitter, tmp_path_factory):
    """The store of the program as that emitter recorded it."""
    path = tmp_path_factory.mktemp(emitter) / "traces.duckdb"
    write_segment(path, "1-1-a", emitted(emitter))
    return Store(path)


def test_every_instrumentation_gives_the_same_calls(own, foreign, emitter):
    """Module, place, prompt, answers, reasons, model, sampling and tokens are those that our own adapter records."""
    expected = rows(own, CALLS)
    # What the emitters of this one do not record.
    for row in expected if emitter == "traceloop" else ():
        row["sampling"] = {key: value for key, value in row["sampling"].items() if key not in ("seed", "stop")}
        row["choice_count"] = None
    assert rows(foreign, CALLS) == expected


def test_every_instrumentation_gives_the_same_tree(own, foreign):
    """The root is the program, the nodes are its modules and its tool."""
    assert rows(foreign, TREE) == rows(own, TREE)


def test_every_instrumentation_gives_a_rollout_with_its_input_and_output(foreign, emitter):
    """The root's input and output are the rollout's, and the hash of the input its example."""
    (row,) = foreign.sql(
        "SELECT program, status, n_calls, input, output FROM rollouts WHERE program IS NOT NULL"
    ).rows()
    asked, told = {
        "openinference": ({"question": QUESTION}, "It is 9 degrees."),
        "traceloop": ({"args": [], "kwargs": {"question": QUESTION}}, "It is 9 degrees."),
    }.get(
        emitter,
        (
            [{"role": "user", "parts": [{"type": "text", "content": QUESTION}]}],
            [
                {
                    "role": "assistant",
                    "parts": [{"type": "text", "content": "It is 9 degrees."}],
                    "finish_reason": "stop",
                }
            ],
        ),
    )
    row["input"], row["output"] = json.loads(row["input"]), json.loads(row["output"])
    assert row == {"program": "weather", "status": "ok", "n_calls": 3, "input": asked, "output": told}


def test_every_instrumentation_gives_a_failed_call(foreign, emitter):
    """A call that failed outside any program has its prompt, no answer, and the exception's type where it was told."""
    (row,) = foreign.sql(
        """
        SELECT calls.module, calls.status, model, messages, completion, finish_reason, error_type
        FROM calls JOIN spans ON spans.span_id = call_id WHERE model = 'broken'
        """
    ).rows()
    told = {"openinference": "openai.InternalServerError", "traceloop": None}.get(emitter, "InternalServerError")
    assert row == {
        "module": None,
        "status": "error",
        "model": "broken",
        "messages": '[{"role":"user","content":"x"}]',
        "completion": None,
        "finish_reason": None,
        "error_type": told,
    }


def test_messages_may_come_as_structured_values(tmp_path):
    """Lists and maps of OTLP say what their JSON says."""
    document = json.loads(emitted("genai_current"))

    def structured(value):
        if isinstance(value, list):
            return {"arrayValue": {"values": [structured(item) for item in value]}}
        if isinstance(value, dict):
            return {"kvlistValue": {"values": [{"key": key, "value": structured(item)} for key, item in value.items()]}}
        return {"stringValue": value}

    for scoped in document["resourceSpans"][0]["scopeSpans"]:
        for span in scoped["spans"]:
            for attribute in span["attributes"]:
                if attribute["key"].endswith(".messages"):
                    attribute["value"] = structured(json.loads(attribute["value"]["stringValue"]))
    write_segment(tmp_path / "json.duckdb", "1-1-a", emitted("genai_current"))
    write_segment(tmp_path / "structured.duckdb", "1-1-a", orjson.dumps(document))
    assert rows(Store(tmp_path / "structured.duckdb"), CALLS) == rows(Store(tmp_path / "json.duckdb"), CALLS)


def test_a_tools_answer_may_stand_under_an_older_name(tmp_path):
    """`result` is read as `response` is."""
    line = emitted("genai_current")
    write_segment(tmp_path / "a.duckdb", "1-1-a", line)
    write_segment(tmp_path / "b.duckdb", "1-1-a", line.replace(rb"{\"response\":", rb"{\"result\":"))
    assert rb"{\"response\":" in line
    assert rows(Store(tmp_path / "b.duckdb"), CALLS) == rows(Store(tmp_path / "a.duckdb"), CALLS)


def test_tools_answers_may_stand_in_a_message_of_the_users(tmp_path):
    """Each is a message of the tool's, before what the user says with them."""
    answers = [{"type": "tool_call_response", "id": f"t{number}", "result": {"warm": number}} for number in (1, 2)]
    prompt = [{"role": "user", "parts": [*answers, {"type": "text", "content": "And now?"}]}]
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "policy",
        "gen_ai.input.messages": json.dumps(prompt),
    }
    write_segment(tmp_path / "a.duckdb", "1-1-a", foreign_span("chat", 1, attributes))
    store = Store(tmp_path / "a.duckdb")
    (row,) = store.sql("SELECT messages, truncated FROM calls").rows()
    assert (json.loads(row["messages"]), row["truncated"]) == (
        [
            {"role": "tool", "tool_call_id": "t1", "content": '{"warm":1}'},
            {"role": "tool", "tool_call_id": "t2", "content": '{"warm":2}'},
            {"role": "user", "content": "And now?"},
        ],
        False,
    )
    kept = store.sql("""SELECT attributes->>'$."gen_ai.input.messages"' AS prompt FROM spans""").rows()
    assert [json.loads(row["prompt"]) for row in kept] == [prompt]
