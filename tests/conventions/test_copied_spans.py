"""Spans that another instrumentation makes in the same process reach the store, under the right module."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import tracetune as tt
from tracetune.grouping import Store
from tracetune.testing import span_tree

CALLS = {
    "openinference": {"openinference.span.kind": "LLM", "llm.model_name": "policy"},
    "traceloop": {"llm.request.type": "chat", "gen_ai.request.model": "policy"},
    "genai": {"gen_ai.operation.name": "chat", "gen_ai.request.model": "policy"},
}
NOT_CALLS = {
    "openinference": {"openinference.span.kind": "EMBEDDING", "gen_ai.request.model": "policy"},
    "traceloop": {"llm.request.type": "embedding", "gen_ai.request.model": "policy"},
    "genai": {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "policy"},
}


@pytest.fixture
def theirs(monkeypatch):
    """A tracer of an application that traces itself."""
    provider = TracerProvider()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return provider.get_tracer("somebody.elses")


def call(theirs, attributes):
    """Make an LM span, as an instrumentation does."""
    with theirs.start_as_current_span("chat", attributes=attributes):
        pass


@pytest.mark.parametrize("convention", CALLS)
def test_calls_of_every_convention_are_copied_under_our_module(tmp_path, theirs, convention):
    """The decorator's module is the call's, no span around it is copied, and what is no call is not either."""

    @tt.module
    def write_query():
        call(theirs, CALLS[convention])
        call(theirs, NOT_CALLS[convention])

    path = tmp_path / "traces.duckdb"
    with tt.record(path), theirs.start_as_current_span("request"):
        write_query()
    store = Store(path)
    assert store.sql("SELECT module, model FROM calls").rows() == [{"module": "write_query", "model": "policy"}]
    assert store.sql("SELECT name FROM spans ORDER BY ALL").rows() == [{"name": "chat"}, {"name": "write_query"}]


def test_where_nothing_is_decorated_the_spans_around_a_call_name_its_module(tmp_path, theirs):
    """They are copied up to the root; spans without a call in them are not."""
    path = tmp_path / "traces.duckdb"
    with tt.record(path), theirs.start_as_current_span("weather", attributes={"openinference.span.kind": "CHAIN"}):
        with (
            theirs.start_as_current_span("write_query", attributes={"openinference.span.kind": "AGENT"}),
            theirs.start_as_current_span("POST"),
        ):
            call(theirs, CALLS["openinference"])
        with theirs.start_as_current_span("look up"):
            pass
    store = Store(path)
    assert store.sql("SELECT module FROM calls").rows() == [{"module": "write_query"}]
    assert store.sql("SELECT program, n_calls FROM rollouts").rows() == [{"program": "weather", "n_calls": 1}]
    names = [row["name"] for row in store.sql("SELECT name FROM spans ORDER BY ALL").rows()]
    assert names == ["POST", "chat", "weather", "write_query"]


def test_what_names_a_secret_is_not_copied(tmp_path, theirs):
    """Secrets by their names, also inside of JSON, stay out of the spool; what a model was asked is kept as it is."""
    asked = '[{"role":"user","parts":[{"type":"text","content":"my password: 123"}]}]'
    path = tmp_path / "traces.duckdb"
    with (
        tt.record(path, redact=lambda text: text.replace("ann", "somebody")),
        theirs.start_as_current_span("chat") as span,
    ):
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": "policy",
                "gen_ai.input.messages": asked,
                "http.request.header.authorization": "Bearer sk-1",
                "llm.invocation_parameters": '{"api_key": "sk-2", "seed": 7}',
                "user": "ann",
                "seeds": [1, 2],
            }
        )
        span.add_event("retry", {"api_key": "sk-3"})
    (written,) = span_tree(tmp_path / "traces.duckdb.spool")
    assert {
        name: written["attributes"][name] for name in written["attributes"] if not name.startswith("tracetune.")
    } == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "policy",
        "gen_ai.input.messages": asked,
        "http.request.header.authorization": "[redacted]",
        "llm.invocation_parameters": '{"api_key": "[redacted]", "seed": 7}',
        "user": "somebody",
        "seeds": [1, 2],
    }
    assert all("sk-" not in file.read_text() for file in (tmp_path / "traces.duckdb.spool").iterdir())
