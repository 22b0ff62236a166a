"""Recordings: what is on while they last, and that nothing is left of them after."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tracetune import tracer
from tracetune.errors import InvalidInput, TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import names


@tracer.module
def echo(text: str) -> str:
    """A module."""
    return text


@tracer.program
def talk(text: str) -> str:
    """A program."""
    return echo(text)


def test_nothing_happens_while_nothing_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorated functions give their own results, threads are their own, and no file is made."""
    monkeypatch.chdir(tmp_path)
    text = "the same object"
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    assert talk(text) is text
    with tracer.rollout() as handle:
        assert talk(text) is text
        tracer.reward(1)
    assert tracer.record_call(messages=[], completion="") is None
    assert tracer.LMCall.begin([]) is None
    assert (handle.status, handle.calls, handle.as_rollout().reward) == ("ok", [], 1.0)
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == (start, submit)
    assert list(tmp_path.iterdir()) == []


def test_threads_are_their_own_again_after_a_recording(store: Path) -> None:
    """What carries the context into threads is undone, also when the block raises."""
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    with tracer.recording(store):
        assert threading.Thread.start is not start
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == (start, submit)
    with pytest.raises(KeyError), tracer.recording(store):
        raise KeyError
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == (start, submit)


def test_a_recording_inside_another_changes_the_scope_only(store: Path, spool: Path) -> None:
    """Both write to one segment, each under its own run; the counts are of both."""
    with tracer.recording(store, run="outer", split="train") as outer:
        echo("a")
        with tracer.recording(f"{store.parent}/../{store.parent.name}/{store.name}", run="inner", step=2) as inner:
            echo("b")
        echo("c")
        assert outer.counts == inner.counts
        assert (outer.run, inner.run, outer.path, inner.path) == ("outer", "inner", store, store)
    assert len(list(spool.iterdir())) == 1
    shown = (names.RUN, names.SPLIT, names.STEP)
    assert [tree["attributes"] for tree in span_tree(spool, attributes=shown)] == [
        {names.RUN: "outer", names.SPLIT: "train"},
        {names.RUN: "inner", names.STEP: 2},
        {names.RUN: "outer", names.SPLIT: "train"},
    ]


def test_another_store_is_refused(store: Path) -> None:
    """A process records to one store at a time; the refusal names both."""
    with tracer.recording(store):
        with pytest.raises(InvalidInput, match=r"already recording to .*traces.duckdb; .* before recording to .*other"):
            tracer.recording(store.parent / "other.duckdb").__enter__()
        with pytest.raises(InvalidInput, match="give processors and redact to the outermost block"):
            tracer.recording(store, redact=str.upper).__enter__()
    with pytest.raises(InvalidInput, match="a store is the path of a DuckDB file, not 3"):
        tracer.recording(3).__enter__()  # type: ignore[arg-type]
    with tracer.recording(store.parent / "other.duckdb") as recorded:
        assert recorded.path == store.parent / "other.duckdb"


def test_threads_that_nothing_carried_a_scope_to_record_under_the_outermost_block(store: Path, spool: Path) -> None:
    """A server's threads are older than the recording, and their calls are recorded all the same."""
    go, done = threading.Event(), threading.Event()

    def serve() -> None:
        go.wait(60)
        echo("served")
        done.set()

    threading.Thread(target=serve, daemon=True).start()
    with tracer.recording(store, run="serving"):
        go.set()
        assert done.wait(60)
    (tree,) = span_tree(spool, attributes=(names.RUN,))
    assert tree["attributes"] == {names.RUN: "serving"}


def test_a_worker_does_not_keep_the_scope_that_it_was_started_in(store: Path, spool: Path) -> None:
    """Each function that a pool runs has its own submitter's scope, and none once nothing records."""
    with ThreadPoolExecutor(1) as pool:
        with tracer.recording(store):
            for name in ("r1", "r2"):
                with tracer.rollout(id=name):
                    pool.submit(talk, name).result()
        assert pool.submit(trace.get_current_span).result() is trace.INVALID_SPAN
        assert pool.submit(otel_context.get_current).result() == {}
    shown = (names.ROLLOUT_ID, names.OUTPUT)
    assert [tree["attributes"] for tree in span_tree(spool, attributes=shown)] == [
        {names.ROLLOUT_ID: name, names.OUTPUT: f'"{name}"'} for name in ("r1", "r2")
    ]


def test_processors_receive_every_span(store: Path) -> None:
    """A user's own exporter sees what the spool sees, as any SDK span."""
    exporter = InMemorySpanExporter()
    shown: list[str] = []
    console = ConsoleSpanExporter(formatter=lambda span: shown.append(span.to_json()) or "")
    processors = [SimpleSpanProcessor(exporter), SimpleSpanProcessor(console)]
    with tracer.recording(store, processors=processors), tracer.rollout(id="r1"):
        talk("a")
    inner, outer = exporter.get_finished_spans()
    assert (inner.name, outer.name, inner.parent) == ("echo", "talk", outer.context)
    assert inner.attributes is not None
    assert inner.attributes[names.OUTPUT] == '"a"'
    assert inner.instrumentation_scope is not None
    assert inner.instrumentation_scope.name == "tracetune"
    assert '"name": "talk"' in shown[1]


def test_a_processor_that_raises_does_not_reach_the_program(store: Path, spool: Path) -> None:
    """Its trouble is warned of once, and the spool has every span."""

    class Broken(SimpleSpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise RuntimeError("backend")

        def on_end(self, span: Any) -> None:
            raise RuntimeError("backend")

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            raise RuntimeError("backend")

    with (
        tracer.recording(store, processors=[Broken(InMemorySpanExporter())]),
        pytest.warns(TracetuneWarning, match="the span processor Broken raised RuntimeError") as caught,
    ):
        assert talk("a") == "a"
    assert len(caught) == 1
    assert len(span_tree(spool)) == 1


def test_the_environments_limits_for_other_spans_take_nothing_from_ours(
    store: Path, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disabled SDK, a sampler and attribute limits are for the application's own spans."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    with tracer.recording(store):
        echo("a text")
    (tree,) = span_tree(spool, attributes=(names.OUTPUT,))
    assert tree["attributes"] == {names.OUTPUT: '"a text"'}


def test_what_a_program_says_of_the_current_span_is_kept(store: Path, spool: Path) -> None:
    """The span of a decorated function is OpenTelemetry's current span."""

    @tracer.module
    def annotate() -> None:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attribute("mine", [1, 2.5, "three"])
        span.record_exception(KeyError("seen"))

    with tracer.recording(store):
        annotate()
    (tree,) = span_tree(spool, attributes=("mine",))
    assert tree == {
        "name": "annotate",
        "attributes": {"mine": [1, 2.5, "three"]},
        "exceptions": ["KeyError"],
        "children": [],
    }


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch) -> tuple[trace.Tracer, InMemorySpanExporter]:
    """A tracer of an application that traces itself, and what its backend has received."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return provider.get_tracer("somebody.elses"), exporter


def test_lm_spans_of_other_instrumentations_are_copied(
    store: Path, spool: Path, application: tuple[trace.Tracer, InMemorySpanExporter]
) -> None:
    """They are written with the scope they started in; their own backend gets them untouched."""
    tracer_of_theirs, exporter = application
    attributes = {names.OPERATION: "chat", names.REQUEST_MODEL: "theirs"}

    @tracer.module
    def ask() -> None:
        with (
            tracer_of_theirs.start_as_current_span("http"),
            tracer_of_theirs.start_as_current_span("chat theirs") as span,
        ):
            span.set_attributes(attributes)

    for _ in range(2):  # the second recording finds its processor there already
        with tracer.recording(store), tracer.rollout(id="r1"):
            ask()
    with tracer_of_theirs.start_as_current_span("chat outside", attributes=attributes):
        pass
    copies = [node for node in _all(span_tree(spool)) if node["name"].startswith("chat")]
    assert [node["name"] for node in copies] == ["chat theirs"] * 2
    execution = copies[0]["attributes"].pop(names.EXECUTION)
    assert copies[0]["attributes"] == attributes | {
        names.RUN: "default",
        names.ROLLOUT_ID: "r1",
        names.KIND: "lm",
        names.CALL_KIND: "call",
        names.MODULE: "ask",
        names.KEY: "",
        names.INVOCATION: 0,
        names.TURN: 0,
    }
    assert len(execution) == 16
    assert not [node for node in _all(span_tree(spool)) if node["name"] == "http"]
    assert [dict(span.attributes or {}) for span in exporter.get_finished_spans() if span.name == "chat theirs"] == [
        attributes
    ] * 2


def _all(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for node in nodes for found in (node, *_all(node["children"]))]


def test_our_call_inside_another_instrumentations_call_names_it(
    store: Path, spool: Path, application: tuple[trace.Tracer, InMemorySpanExporter]
) -> None:
    """Where two instrumentations report one call, the inner one says which span encloses it."""
    with (
        tracer.recording(store),
        application[0].start_as_current_span("chat theirs", attributes={names.REQUEST_MODEL: "theirs"}) as span,
    ):
        tracer.record_call(messages=[], completion="", model="ours")
    (outer,) = span_tree(spool, attributes=(names.LM_PARENT,))
    assert outer["children"][0]["attributes"] == {names.LM_PARENT: f"{span.get_span_context().span_id:016x}"}


def test_seeding_random_leaves_it_to_the_program(store: Path) -> None:
    """Tracing draws nothing from the generator that a program has seeded."""
    random.seed(7)
    expected = random.random()
    with tracer.recording(store):
        random.seed(7)
        talk("a")
        assert random.random() == expected
