"""One execution of a program, as each tool would have logged it.

`find` plans once, searches twice and answers once; each of its modules asks the model. The
shapes are those that the tools document: Langfuse's observations and scores (public API),
LangSmith's runs ("Run (span) data format"), Phoenix's spans (its span schema, and the columns
of `get_spans_dataframe`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

BEGUN = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
# Module, the prompt, the answer.
CALLS = (
    ("plan", "Plan: who is bob's friend?", "look for bob"),
    ("search", "Search: bob", "bob knows ann"),
    ("search", "Search: ann", "ann knows carl"),
    ("answer", "Answer: who is bob's friend?", "ann"),
)
QUESTION = {"question": "who is bob's friend?"}
REWARD = 0.75


def moment(second: float) -> str:
    """So many seconds after the beginning, in ISO 8601."""
    return (BEGUN + timedelta(seconds=second)).isoformat().replace("+00:00", "Z")


def langfuse() -> list[dict[str, Any]]:
    """Observations in camel case, children before their parents, and a score."""
    shared = {"traceId": "trace-1", "level": "DEFAULT", "environment": "default", "metadata": {"tenant": "a"}}
    logged: list[dict[str, Any]] = []
    for number, (module, prompt, answer) in enumerate(CALLS):
        logged.append(
            shared
            | {
                "id": f"generation-{number}",
                "type": "GENERATION",
                "name": "ChatOpenAI",
                "parentObservationId": f"module-{number}",
                "startTime": moment(number + 0.2),
                "endTime": moment(number + 0.8),
                "model": "gpt-4o-mini",
                "modelParameters": {"temperature": 0.7, "max_tokens": "inf"},
                "input": [{"role": "user", "content": prompt}],
                "output": {"role": "assistant", "content": answer},
                "usageDetails": {"input": 10 + number, "output": 3, "total": 13 + number},
            }
        )
        logged.append(
            shared
            | {
                "id": f"module-{number}",
                "type": "SPAN",
                "name": module,
                "parentObservationId": "program",
                "startTime": moment(number + 0.1),
                "endTime": moment(number + 0.9),
                "input": prompt,
                "output": answer,
            }
        )
    logged.append(
        shared
        | {
            "id": "program",
            "type": "SPAN",
            "name": "find",
            "parentObservationId": None,
            "startTime": moment(0),
            "endTime": moment(4),
            "input": QUESTION,
            "output": "ann",
        }
    )
    logged.append(
        {
            "id": "score-1",
            "traceId": "trace-1",
            "name": "correctness",
            "value": REWARD,
            "dataType": "NUMERIC",
            "source": "API",
            "comment": "nearly",
            "timestamp": moment(60),
        }
    )
    return logged


def langfuse_blob() -> list[dict[str, Any]]:
    """The same as the blob-storage export has it: underscores, times without a zone, JSON in texts."""
    rows = []
    for item in langfuse():
        row = {_snake(name): value for name, value in item.items()}
        for name in ("start_time", "end_time", "timestamp"):
            if name in row:
                row[name] = row[name].replace("T", " ").removesuffix("Z")
        if "model" in row:
            row["provided_model_name"] = row.pop("model")
        rows.append(row)
    return rows


def langsmith() -> list[dict[str, Any]]:
    """Runs, the last one first; the two searches began in the same instant."""
    starts = (0.1, 1.1, 1.1, 2.1)
    root = _uuid(1)
    order = f"{_stamp(0)}{root}"
    runs: list[dict[str, Any]] = [
        {
            "id": root,
            "trace_id": root,
            "name": "find",
            "run_type": "chain",
            "start_time": moment(0),
            "end_time": moment(4),
            "inputs": QUESTION,
            "outputs": {"output": "ann"},
            "dotted_order": order,
            "parent_run_id": None,
            "error": None,
            "feedback_stats": {"correctness": {"n": 1, "avg": REWARD}},
            "extra": {"metadata": {}},
            "tags": [],
        }
    ]
    for number, (module, prompt, answer) in enumerate(CALLS):
        node, wrapper, call = _uuid(10 + number), _uuid(20 + number), _uuid(30 + number)
        start = starts[number]
        metadata = {"langgraph_node": module, "ls_provider": "openai", "ls_temperature": 0.7}
        node_order = f"{order}.{_stamp(start)}{node}"
        wrapper_order = f"{node_order}.{_stamp(start)}{wrapper}"
        shared = {"trace_id": root, "start_time": moment(start), "end_time": moment(start + 0.8), "error": None}
        runs += [
            shared
            | {
                "id": node,
                "name": module,
                "run_type": "chain",
                "parent_run_id": root,
                "dotted_order": node_order,
                "inputs": {"input": prompt},
                "outputs": {"output": answer},
                "extra": {"metadata": metadata},
            },
            shared
            | {
                "id": wrapper,
                "name": "RunnableSequence",
                "run_type": "chain",
                "parent_run_id": node,
                "dotted_order": wrapper_order,
                "inputs": {"input": prompt},
                "outputs": {"output": answer},
                "extra": {"metadata": metadata},
            },
            shared
            | {
                "id": call,
                "name": "ChatOpenAI",
                "run_type": "llm",
                "parent_run_id": wrapper,
                "dotted_order": f"{wrapper_order}.{_stamp(start)}{call}",
                "inputs": {
                    "messages": [
                        [
                            {
                                "lc": 1,
                                "type": "constructor",
                                "id": ["langchain", "schema", "messages", "HumanMessage"],
                                "kwargs": {"content": prompt, "type": "human"},
                            }
                        ]
                    ]
                },
                "outputs": {
                    "generations": [
                        [
                            {
                                "text": answer,
                                "generation_info": {"finish_reason": "stop"},
                                "message": {
                                    "lc": 1,
                                    "type": "constructor",
                                    "id": ["langchain", "schema", "messages", "AIMessage"],
                                    "kwargs": {"content": answer, "type": "ai"},
                                },
                            }
                        ]
                    ]
                },
                "extra": {"metadata": metadata, "invocation_params": {"model": "gpt-4o-mini", "temperature": 0.7}},
                "prompt_tokens": 10 + number,
                "completion_tokens": 3,
            },
        ]
    return runs[::-1]


def openinference() -> list[dict[str, Any]]:
    """Spans as Phoenix's API gives them: attributes nested, times with a zone."""
    spans: list[dict[str, Any]] = [
        _phoenix("find", "CHAIN", 1, None, 0, 4, {"input": {"value": '{"question": "who is bob\'s friend?"}'}})
    ]
    for number, (module, prompt, answer) in enumerate(CALLS):
        node, call = 10 + number, 20 + number
        spans.append(_phoenix(module, "CHAIN", node, 1, number + 0.1, number + 0.9, {"input": {"value": prompt}}))
        attributes = {
            "llm": {
                "model_name": "gpt-4o-mini",
                "provider": "openai",
                "invocation_parameters": '{"temperature": 0.7, "model": "gpt-4o-mini"}',
                "token_count": {"prompt": 10 + number, "completion": 3},
                "input_messages": [{"message": {"role": "user", "content": prompt}}],
                "output_messages": [{"message": {"role": "assistant", "content": answer}}],
            },
            "metadata": {"tenant": "a"},
        }
        spans.append(_phoenix("ChatOpenAI", "LLM", call, node, number + 0.2, number + 0.8, attributes))
    return spans


def openinference_rows() -> list[dict[str, Any]]:
    """The same as rows of `get_spans_dataframe`."""
    rows = []
    for span in openinference():
        row: dict[str, Any] = {
            "context.trace_id": span["context"]["trace_id"],
            "context.span_id": span["context"]["span_id"],
        }
        row |= {
            name: span[name] for name in ("name", "span_kind", "parent_id", "start_time", "end_time", "status_code")
        }
        llm = span["attributes"].get("llm", {})
        row["attributes.input.value"] = span["attributes"].get("input", {}).get("value")
        row["attributes.llm.model_name"] = llm.get("model_name")
        row["attributes.llm.provider"] = llm.get("provider")
        row["attributes.llm.invocation_parameters"] = llm.get("invocation_parameters")
        row["attributes.llm.token_count.prompt"] = llm.get("token_count", {}).get("prompt")
        row["attributes.llm.token_count.completion"] = llm.get("token_count", {}).get("completion")
        for side in ("input", "output"):
            row[f"attributes.llm.{side}_messages"] = [
                {f"message.{name}": value for name, value in item["message"].items()}
                for item in llm.get(f"{side}_messages", ())
            ] or None
        row["attributes.metadata"] = span["attributes"].get("metadata")
        rows.append(row)
    return rows


def _phoenix(
    name: str, kind: str, number: int, parent: int | None, start: float, end: float, attributes: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": f"U3Bhbjo{number}",
        "name": name,
        "span_kind": kind,
        "context": {"trace_id": f"{7:032x}", "span_id": f"{number:016x}"},
        "parent_id": None if parent is None else f"{parent:016x}",
        "start_time": moment(start).replace("Z", "+00:00"),
        "end_time": moment(end).replace("Z", "+00:00"),
        "status_code": "OK",
        "status_message": "",
        "attributes": attributes,
        "events": [],
    }


def _uuid(number: int) -> str:
    return str(UUID(int=number))


def _stamp(second: float) -> str:
    return (BEGUN + timedelta(seconds=second)).strftime("%Y%m%dT%H%M%S%fZ")


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
