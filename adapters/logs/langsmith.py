"""LangSmith: exported runs, in the order of their `dotted_order`.

A trace is a rollout, an `llm` run an LM call. Chains around it are its modules; of
LangGraph's, only the node's own run, and of LangChain's wrappers none. Averages of
feedback become scores.

Reference:
    LangSmith, "Run (span) data format".
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tracetune.adapters.formats import DEFAULTS, FormatOptions, Line, Refused
from tracetune.adapters.logs.chat import answers_of, messages_of
from tracetune.adapters.logs.formats_seen import not_as_asked
from tracetune.adapters.logs.lines import LoggedSpan, call_attributes, score_line
from tracetune.adapters.logs.objects import objects
from tracetune.adapters.logs.values import dumped, example_of, fields_of, loaded, nanoseconds, span_hex
from tracetune.tracer import names

_KINDS = {"llm": "lm", "chain": "module", "tool": "tool", "retriever": "tool"}
_WRAPPERS = ("Runnable", "ChannelWrite", "ChannelRead", "LangGraph")
_READ = {
    "id", "trace_id", "parent_run_id", "name", "run_type", "start_time", "end_time", "inputs", "outputs", "error",
    "extra", "dotted_order", "feedback_stats", "reference_example_id", "prompt_tokens", "completion_tokens",
    "total_tokens", "events", "serialized", "status", "child_run_ids", "direct_child_run_ids", "parent_run_ids",
    "app_path", "manifest_id", "first_token_time", "execution_order", "in_dataset", "inputs_preview",
    "outputs_preview", "last_queued_at", "share_token", "trace_tier", "trace_upgrade", "attachments",
}  # fmt: skip


def read(file: BinaryIO, options: FormatOptions = DEFAULTS) -> Iterator[Line | Refused]:
    """The spans and scores of a file, and what in it cannot be read."""
    # Runs that began in one instant stand in the order of their dotted orders, which takes a look at all of them.
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "runs"
        with copied.open("wb") as copy:
            shutil.copyfileobj(file, copy)
        with copied.open("rb") as first:
            ranks = _ranks(first)
        with copied.open("rb") as second:
            for found in objects(second):
                if isinstance(found, Refused):
                    yield found
                else:
                    yield from _run(*found, ranks, options)


def _ranks(file: BinaryIO) -> dict[str, int]:
    """The place of each run among those of its trace that began in the same instant, where it is not the first."""
    together: dict[str, list[str]] = {}
    for found in objects(file):
        if not isinstance(found, Refused):
            order = found[1].get("dotted_order")
            if isinstance(order, str):
                together.setdefault(_instant(order), []).append(order)
    return {
        order: rank
        for orders in together.values()
        if len(orders) > 1
        for rank, order in enumerate(sorted(set(orders)))
        if rank
    }


def _instant(order: str) -> str:
    """What runs of one trace share that began together: the trace's part, and the run's own time."""
    return f"{order.partition('.')[0]}/{order.rpartition('.')[2].partition('Z')[0]}"


def _run(
    place: str, run: Mapping[str, Any], ranks: Mapping[str, int], options: FormatOptions
) -> Iterator[Line | Refused]:
    if not run.get("id") or not isinstance(run.get("run_type"), str):
        yield not_as_asked(place, run, "langsmith", "a run of LangSmith")
        return
    try:
        # Its scores first: what cannot be read leaves nothing of the run behind.
        span = _span(run, ranks)
        scores, refused = _scores(place, run, span, options)
        yield span.line()
        yield from scores
        yield from refused
    except (ValueError, TypeError, KeyError) as error:
        yield Refused(place, str(error))


def _span(run: Mapping[str, Any], ranks: Mapping[str, int]) -> LoggedSpan:
    identity, parent = str(run["id"]), run.get("parent_run_id") or None
    trace = str(run.get("trace_id") or _root_of(run.get("dotted_order")) or identity)
    extra = fields_of(run.get("extra"))
    metadata = fields_of(extra.get("metadata"))
    name, kind = str(run.get("name") or run["run_type"]), _KINDS.get(run["run_type"])
    started = nanoseconds(run["start_time"]) + ranks.get(str(run.get("dotted_order")), 0)
    attributes: dict[str, Any] = {
        f"langsmith.{key}": field if isinstance(field, str) else dumped(field)
        for key, field in run.items()
        if key not in _READ and field not in (None, "", [], {})
    }
    if metadata:
        attributes["langsmith.metadata"] = dumped(metadata)
    if run.get("reference_example_id"):
        attributes[names.EXAMPLE_ID] = str(run["reference_example_id"])
    inputs, outputs = loaded(run.get("inputs")), loaded(run.get("outputs"))
    if kind == "lm":
        attributes |= _call(run, inputs, outputs, extra, metadata)
        if parent is None:
            attributes |= {names.MODULE: name, names.EXECUTION: span_hex(identity)}
            attributes.setdefault(names.EXAMPLE_ID, example_of(messages_of(inputs)))
    else:
        attributes[names.INPUT] = None if inputs is None else dumped(inputs)
        attributes[names.OUTPUT] = None if outputs is None else dumped(outputs)
        if kind == "module" and parent is None:
            kind = "program"
        elif kind == "module" and not _is_module(name, metadata):
            kind = None
    error = run.get("error")
    return LoggedSpan(
        trace=trace,
        id=identity,
        parent=str(parent) if parent else None,
        name=name,
        kind=kind,
        started_at=started,
        ended_at=nanoseconds(run["end_time"]) if run.get("end_time") else started,
        attributes=attributes,
        error=str(error) if error else None,
    )


def _is_module(name: str, metadata: Mapping[str, Any]) -> bool:
    node = metadata.get("langgraph_node")
    return name == node if node else not name.startswith(_WRAPPERS)


def _call(
    run: Mapping[str, Any], inputs: Any, outputs: Any, extra: Mapping[str, Any], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    parameters = fields_of(extra.get("invocation_params"))
    provider = metadata.get("ls_provider")
    return call_attributes(
        messages_of(inputs),
        answers_of(outputs),
        model=parameters.get("model") or parameters.get("model_name") or metadata.get("ls_model_name"),
        sampling={"temperature": metadata.get("ls_temperature"), "max_tokens": metadata.get("ls_max_tokens")}
        | {name: value for name, value in parameters.items() if value is not None},
        input_tokens=run.get("prompt_tokens"),
        output_tokens=run.get("completion_tokens"),
        provider=provider if isinstance(provider, str) else None,
    )


def _scores(
    place: str, run: Mapping[str, Any], span: LoggedSpan, options: FormatOptions
) -> tuple[list[Line], list[Refused]]:
    lines: list[Line] = []
    refused: list[Refused] = []
    is_scored_here = span.parent is None or span.kind == "lm"
    for name, said in fields_of(run.get("feedback_stats")).items():
        if not is_scored_here:
            refused.append(Refused(place, f"the feedback {name!r} is of a run that is neither a trace nor an LM call"))
            continue
        try:
            line = score_line(
                span.trace,
                "reward" if name == options.reward else str(name),
                fields_of(said).get("avg"),
                source="langsmith",
                record=f"{span.id}/{name}",
                time=span.ended_at,
                call=span.id if span.parent is not None else None,
            )
        except ValueError as error:
            refused.append(Refused(place, str(error)))
        else:
            lines.append(line)
    return lines, refused


def _root_of(order: Any) -> str | None:
    """The root run's id in a dotted order: what follows its time."""
    return order.partition(".")[0].partition("Z")[2] or None if isinstance(order, str) else None
