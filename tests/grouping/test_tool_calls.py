"""Completions that call tools: members have the calls, as they were received."""

from __future__ import annotations

from typing import Any

import tracetune as tt
from tracetune.tracer import Choice, LMCall

PROMPT = [{"role": "user", "content": "who?"}]


def search(query: str) -> dict[str, Any]:
    """A call of a tool."""
    function = {"name": "search", "arguments": f'{{"query": "{query}"}}'}
    return {"id": f"call_{query}", "type": "function", "function": function}


@tt.module
def look(choices: list[Choice]) -> None:
    """One request, and the choices that answer it."""
    call = LMCall.begin(PROMPT, model="outside", sampling={}, provider="openai")
    assert call is not None
    call.end(choices=choices)


@tt.program
def find(choices: list[Choice]) -> None:
    """The module alone."""
    look(choices)


def calling(text: str | None, *calls: dict[str, Any]) -> Choice:
    """A choice that calls tools."""
    message = {"role": "assistant", "content": text, "tool_calls": list(calls)}
    return Choice(text=text or "", finish_reason="tool_calls", message=message)


def test_members_have_the_tools_that_they_call(tmp_path):
    """With a text beside them or without one, each choice has its own calls, and one that calls nothing has none."""
    first = [calling(None, search("ann"), search("bob")), calling("wait", search("carl"))]
    second = [Choice(text="ann", finish_reason="stop"), calling(None, search("dora"))]
    with tt.record(tmp_path / "traces.duckdb", run="tools"):
        for reward, choices in ((0.0, first), (1.0, second)):
            with tt.rollout(example_id="q"):
                find(choices)
                tt.reward(reward)
    (group,) = tt.Store(tmp_path / "traces.duckdb").groups()
    assert sorted((member.reward, member.text, tuple(map(str, member.tool_calls))) for member in group.members) == [
        (0.0, "", (str(search("ann")), str(search("bob")))),
        (0.0, "wait", (str(search("carl")),)),
        (1.0, "", (str(search("dora")),)),
        (1.0, "ann", ()),
    ]
