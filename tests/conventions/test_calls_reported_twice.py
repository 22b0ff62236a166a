"""A call that two instrumentations report counts once, and each call has the module around it."""

from __future__ import annotations

import pytest
from conventions.otlp_lines import foreign_span
from store.spool_lines import write_segment

from tracetune.grouping import Store

LLM = {"openinference.span.kind": "LLM", "llm.model_name": "policy"}
AGENT = {"openinference.span.kind": "AGENT"}
TOOL = {"openinference.span.kind": "TOOL"}
CHAIN = {"openinference.span.kind": "CHAIN"}


@pytest.fixture
def path(tmp_path):
    """Where the store of a test stands."""
    return tmp_path / "traces.duckdb"


def calls(path, *lines):
    """Span and module of each call of a store that took in those lines."""
    write_segment(path, f"{len(lines)}-1-a", *lines)
    found = Store(path).sql("SELECT call_id, module, invocation, turn FROM calls ORDER BY call_id").rows()
    return [(int(row["call_id"], 16), row["module"], row["invocation"], row["turn"]) for row in found]


def test_of_nested_lm_spans_the_deepest_counts(path):
    """Whatever stands between them, if it is no module and no tool."""
    assert calls(
        path,
        foreign_span("weather", 1, CHAIN),
        foreign_span("ChatOpenAI", 2, LLM, parent=1),
        foreign_span("POST", 3, parent=2),
        foreign_span("chat", 4, {"gen_ai.operation.name": "chat", "gen_ai.request.model": "policy"}, parent=3),
        foreign_span("openai.chat", 5, {"llm.request.type": "chat"}, parent=4),
        foreign_span("chat", 6, LLM, parent=1),
    ) == [(5, "weather", 0, 0), (6, "weather", 0, 1)]


def test_a_call_of_a_tool_inside_a_call_is_another(path):
    """An LM span whose tool asks a model of its own was itself a call."""
    assert calls(
        path,
        foreign_span("weather", 1, CHAIN),
        foreign_span("generate", 2, LLM, parent=1),
        foreign_span("lookup", 3, TOOL, parent=2),
        foreign_span("chat", 4, LLM, parent=3),
    ) == [(2, "weather", 0, 0), (4, "lookup", 0, 0)]


def test_the_inner_span_may_come_before_what_stands_between(path):
    """Whether two spans are one call is settled again whenever more of their trace arrives."""
    outer, between = foreign_span("ChatOpenAI", 2, LLM, parent=1), foreign_span("POST", 3, parent=2)
    inner = foreign_span("chat", 4, LLM, parent=3)
    write_segment(path, "0-1-a", inner, outer)
    Store(path).ingest()
    assert calls(path, between) == [(4, "ChatOpenAI", 0, 0)]
    write_segment(path, "9-1-a", foreign_span("weather", 1, CHAIN))
    assert Store(path).sql("SELECT module FROM calls").rows() == [{"module": "weather"}]


def test_wrappers_of_langchain_are_no_modules(path):
    """A call inside a RunnableSequence belongs to the node around it, and two of them are two invocations."""
    assert calls(
        path,
        foreign_span("LangGraph", 1, CHAIN),
        foreign_span("write_query", 2, CHAIN, parent=1),
        foreign_span("RunnableSequence", 3, CHAIN, parent=2),
        foreign_span("ChatOpenAI", 4, LLM, parent=3),
        foreign_span("write_query", 5, CHAIN, parent=1),
        foreign_span("ChatOpenAI", 6, LLM, parent=5),
    ) == [(4, "write_query", 0, 0), (6, "write_query", 1, 0)]


@pytest.mark.parametrize("parents", [{2: 2}, {2: 3, 3: 2}], ids=["of itself", "of two"])
def test_parents_that_go_round_in_a_circle_come_to_an_end(path, parents):
    """Spans that are their own ancestors are kept, and so is a call under them."""
    circle = [foreign_span("around", span_id, parent=parent) for span_id, parent in parents.items()]
    assert [row[0] for row in calls(path, foreign_span("chat", 4, LLM, parent=2), *circle)] == [4]
    write_segment(path, "9-1-a", foreign_span("chat", 5, LLM, parent=5))
    assert Store(path).sql("SELECT count(*) AS n FROM spans").rows() == [{"n": len(circle) + 2}]
