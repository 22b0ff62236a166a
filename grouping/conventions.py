"""Spans of other instrumentations in our own words: one table of names, and how they are read.

OpenTelemetry's GenAI conventions have changed their names twice, and OpenInference and
traceloop have names of their own. `TABLE` says once which names fill which column, in
order of preference; `read_foreign` goes by it, and `docs/conventions.md` shows it. What
cannot be read stays among the span's attributes as it came, and so does whatever says
more than its column holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from tracetune.grouping import flat_messages as flat
from tracetune.grouping import foreign_values as values
from tracetune.grouping import messages
from tracetune.grouping.foreign_sources import Event, Events, Indexed, Member, RawSpan, Source
from tracetune.grouping.foreign_values import Partly
from tracetune.tracer import names

Choice = tuple[str | None, str | None]

_DETAILS = "gen_ai.client.inference.operation.details"
_PARAMETERS = "llm.invocation_parameters"
# Where a reading finds what has no attribute of its own.
_MESSAGES, _CHOICES, _SYSTEM, _NODE = "messages", "choices", "system", "node"
_NODE_KINDS = ("program", "module", "tool")

_KINDS = {
    # tracetune's own stamp
    "program": "program",
    "module": "module",
    "lm": "lm",
    # GenAI operations
    "chat": "lm",
    "text_completion": "lm",
    "generate_content": "lm",
    "invoke_agent": "module",
    "invoke_workflow": "program",
    "execute_tool": "tool",
    "retrieval": "tool",
    # OpenInference
    "LLM": "lm",
    "CHAIN": "module",
    "AGENT": "module",
    "TOOL": "tool",
    "RETRIEVER": "tool",
    # traceloop
    "workflow": "program",
    "task": "module",
    "agent": "module",
    "tool": "tool",
}
_OPERATIONS = {"completion": "text_completion", "embedding": "embeddings"}
# LangChain's wrappers stand between a node and its call, and name neither.
_PLUMBING = "Runnable"


def _kind(value: Any) -> Any:
    if value not in _KINDS:
        raise ValueError("a kind that has no name here")
    return Partly(_KINDS[value])


def _operation(value: Any) -> str:
    operation = values.text(value)
    return _OPERATIONS.get(operation, operation)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        column: what it fills, of `spans` or of `calls`.
        of: the spans that it is read on: any, LM calls, named nodes (program, module
            or tool), or all but LM calls.
        sources: in order of preference; the first that can be read fills the column.
        meaning: what the value says.
        read: gives the value; raises TypeError or ValueError where there is none.
        into: the name that the decoder knows the value by.
    """

    column: str
    of: Literal["any", "call", "node", "other"]
    sources: tuple[Source, ...]
    meaning: str
    read: Callable[[Any], Any]
    into: str


def _stamp(column: str, name: str, meaning: str, read: Callable[[Any], Any] = values.any_text) -> Row:
    return Row(column, "any", (name,), meaning, read, name)


TABLE = (
    Row(
        "kind", "any", (names.KIND, names.OPENINFERENCE_KIND, "traceloop.span.kind", names.OPERATION,
                        names.TRACELOOP_REQUEST),
        "what the span is: program, module, tool or lm", _kind, names.KIND,
    ),
    Row(
        "operation", "any", (names.OPERATION, names.TRACELOOP_REQUEST),
        "the operation's name", _operation, names.OPERATION,
    ),
    Row(
        "module", "node", ("gen_ai.tool.name", "tool.name", "traceloop.entity.name", "gen_ai.agent.name",
                           "gen_ai.workflow.name", "agent.name", "graph.node.name", "graph.node.id"),
        "the node's name, where it is not the span's", values.text, _NODE,
    ),
    Row(
        "provider", "any", (names.PROVIDER, "gen_ai.system", "llm.provider", "llm.system"),
        "who serves the model, in small letters", values.lower, names.PROVIDER,
    ),
    Row(
        "request_model", "any", (names.REQUEST_MODEL, "llm.request.model_name", "llm.request.model",
                                 Member(_PARAMETERS, "model")),
        "the model that was asked for; `calls.model`", values.text, names.REQUEST_MODEL,
    ),
    Row(
        "response_model", "any", (names.RESPONSE_MODEL, "llm.response.model_name", "llm.response.model",
                                  "llm.model_name"),
        "the model that answered; `calls.model` where none was asked for", values.text, names.RESPONSE_MODEL,
    ),
    Row(
        "response_id", "call", (names.RESPONSE_ID, Member("output.value", "id")),
        "the response's id", values.text, names.RESPONSE_ID,
    ),
    Row(
        "input_tokens", "any", (names.INPUT_TOKENS, "gen_ai.usage.prompt_tokens", "llm.token_count.prompt",
                                "llm.usage.prompt_tokens"),
        "tokens of the prompt", values.whole, names.INPUT_TOKENS,
    ),
    Row(
        "output_tokens", "any", (names.OUTPUT_TOKENS, "gen_ai.usage.completion_tokens", "llm.token_count.completion",
                                 "llm.usage.completion_tokens"),
        "tokens of all choices", values.whole, names.OUTPUT_TOKENS,
    ),
    Row(
        "choice_count", "any", (names.CHOICE_COUNT, "gen_ai.request.n", "gen_ai.openai.request.n",
                                Member(_PARAMETERS, "n")),
        "how many choices were asked for", values.whole, names.CHOICE_COUNT,
    ),
    Row(
        "finish_reason", "call", (names.FINISH_REASONS, "gen_ai.response.finish_reason",
                                  "llm.response.finish_reason", "gen_ai.response.stop_reason",
                                  "llm.response.stop_reason"),
        "why each choice ended", values.texts, names.FINISH_REASONS,
    ),
    Row(
        "finish_reason", "call", (Member("output.value", "choices"),),
        "the same, in an OpenAI response", messages.response_reasons, names.FINISH_REASONS,
    ),
    Row("finish_reason", "call", ("llm.finish_reason",), "the same, of one choice", values.texts, names.FINISH_REASONS),
    Row(
        "sampling", "call", (names.TEMPERATURE, "llm.temperature", Member(_PARAMETERS, "temperature")),
        "`temperature`", values.real, names.TEMPERATURE,
    ),
    Row(
        "sampling", "call", (names.TOP_P, "llm.top_p", Member(_PARAMETERS, "top_p")),
        "`top_p`", values.real, names.TOP_P,
    ),
    Row(
        "sampling", "call", (names.TOP_K, "llm.top_k", Member(_PARAMETERS, "top_k")),
        "`top_k`", values.whole, names.TOP_K,
    ),
    Row(
        "sampling", "call", (names.MAX_TOKENS, "gen_ai.request.max_completion_tokens",
                             Member(_PARAMETERS, "max_completion_tokens"), Member(_PARAMETERS, "max_tokens")),
        "`max_tokens`", values.whole, names.MAX_TOKENS,
    ),
    Row(
        "sampling", "call", (names.SEED, "gen_ai.openai.request.seed", Member(_PARAMETERS, "seed")),
        "`seed`", values.whole, names.SEED,
    ),
    Row(
        "sampling", "call", (names.STOP, "llm.chat.stop_sequences", Member(_PARAMETERS, "stop")),
        "`stop`", values.texts, names.STOP,
    ),
    Row(
        "messages", "call", (names.INPUT_MESSAGES, Event(_DETAILS, names.INPUT_MESSAGES)),
        "the prompt, as messages of parts", messages.foreign_messages, _MESSAGES,
    ),
    Row(
        "messages", "call", ("gen_ai.system_instructions", Event(_DETAILS, "gen_ai.system_instructions")),
        "the system's message, before the others", messages.system_message, _SYSTEM,
    ),
    Row(
        "messages", "call", (Indexed("llm.input_messages"), Indexed("gen_ai.prompt")),
        "the prompt, one attribute a field", flat.flat_messages, _MESSAGES,
    ),
    Row(
        "messages", "call", ("gen_ai.prompt", Event("gen_ai.content.prompt", "gen_ai.prompt")),
        "the prompt, as JSON or as one text", messages.prompt_text, _MESSAGES,
    ),
    Row(
        "messages", "call", (Events(("gen_ai.system.message", "gen_ai.user.message", "gen_ai.assistant.message",
                                     "gen_ai.tool.message")),),
        "the prompt, one event a message", messages.event_messages, _MESSAGES,
    ),
    Row(
        "messages", "call", (Indexed("llm.prompts"),),
        "the prompt of a text completion, as a user's message", flat.flat_prompt, _MESSAGES,
    ),
    Row(
        "messages", "call", (Member("input.value", "messages"),),
        "the prompt, in an OpenAI request", messages.foreign_messages, _MESSAGES,
    ),
    Row(
        "completion", "call", (names.OUTPUT_MESSAGES, Event(_DETAILS, names.OUTPUT_MESSAGES)),
        "text and finish reason of each choice, as messages of parts", messages.foreign_choices, _CHOICES,
    ),
    Row(
        "completion", "call", (Indexed("llm.output_messages"), Indexed("gen_ai.completion")),
        "the same, one attribute a field", flat.flat_choices, _CHOICES,
    ),
    Row(
        "completion", "call", ("gen_ai.completion", Event("gen_ai.content.completion", "gen_ai.completion")),
        "the same, as JSON or as one text", messages.completion_text, _CHOICES,
    ),
    Row(
        "completion", "call", (Events(("gen_ai.choice",)),),
        "the same, one event a choice", messages.event_choices, _CHOICES,
    ),
    Row(
        "completion", "call", (Indexed("llm.choices"),),
        "the answers of a text completion", flat.flat_completion, _CHOICES,
    ),
    Row(
        "input", "other", (names.INPUT, "input.value", "traceloop.entity.input", "gen_ai.tool.call.arguments",
                           names.INPUT_MESSAGES),
        "what a program, module or tool was given, as JSON; the hash of a root's is its `example_id`",
        values.json_text, names.INPUT,
    ),
    Row(
        "output", "other", (names.OUTPUT, "output.value", "traceloop.entity.output", "gen_ai.tool.call.result",
                            names.OUTPUT_MESSAGES),
        "what it gave, as JSON", values.json_text, names.OUTPUT,
    ),
    Row(
        "error_type", "any", (names.ERROR_TYPE, Event("exception", "exception.type")),
        "the exception's type, of a span that failed", values.text, names.ERROR_TYPE,
    ),
    # What a recording in the same process stamps on the spans that it copies.
    _stamp("run", names.RUN, "the recording's name"),
    _stamp("split", names.SPLIT, "train or val"),
    _stamp("step", names.STEP, "the training step", values.whole),
    _stamp("rollout_id", names.ROLLOUT_ID, "the rollout"),
    _stamp("example_id", names.EXAMPLE_ID, "its example"),
    _stamp("policy_version", names.POLICY_VERSION, "the policy in force"),
    _stamp("module", names.MODULE, "the enclosing module, or the program"),
    _stamp("key", names.KEY, "the invocation's key"),
    _stamp("execution", names.EXECUTION, "the module's execution"),
    _stamp("recorded_invocation", names.INVOCATION, "its ordinal", values.whole),
    _stamp("recorded_turn", names.TURN, "the call's ordinal in it", values.whole),
    _stamp("unordered", names.UNORDERED, "whether executions overlapped", values.flag),
    _stamp("late", names.LATE, "whether its rollout was closed before", values.flag),
    _stamp("truncated", names.TRUNCATED, "attributes that were shortened", values.texts),
    _stamp("status", names.STATUS, "ok, error or format_error", values.text),
    Row("lm_parent", "call", (names.LM_PARENT,), "the LM span around it", values.any_text, names.LM_PARENT),
    Row("kind", "call", (names.CALL_KIND,), "call or score", values.any_text, names.CALL_KIND),
)  # fmt: skip


@dataclass(slots=True)
class Reading:
    """What a foreign span says, by our names; its prompt and its choices where it is an LM call."""

    said: dict[str, Any] = field(default_factory=dict)
    messages: str | None = None
    choices: list[Choice] = field(default_factory=list)


def read_foreign(
    name: str, attributes: dict[str, Any], events: list[tuple[str, dict[str, Any]]], *, is_root: bool
) -> Reading:
    """Read a span by the table, and take what was read whole out of its attributes.

    Example:
        >>> attributes = {"openinference.span.kind": "LLM", "llm.token_count.prompt": 3, "session.id": "s"}
        >>> read_foreign("ChatCompletion", attributes, [], is_root=False).said["gen_ai.usage.input_tokens"]
        3
        >>> attributes
        {'openinference.span.kind': 'LLM', 'session.id': 's'}
    """
    raw = RawSpan(attributes, events)
    said: dict[str, Any] = {}
    kind = _kind_of(raw, name, is_root=is_root)
    if kind is not None:
        said[names.KIND] = kind
    cut: set[str] = set()
    for row in _ROWS[kind]:
        for source in row.sources:
            found = raw.find(source)
            if found is not None:
                _take(row, source, found, raw, said, cut)
    if _NODE in said:
        said.setdefault(names.MODULE, said.pop(_NODE))
    if cut:
        said[names.TRUNCATED] = sorted({*said.get(names.TRUNCATED, ()), *cut})
    return _content(said) if kind == "lm" else Reading(said)


def _kind_of(raw: RawSpan, name: str, *, is_root: bool) -> str | None:
    stamp = raw.attributes.get(names.KIND)
    if isinstance(stamp, str) and stamp in _KINDS:
        return _KINDS[raw.attributes.pop(names.KIND)]  # a stamp of ours stands, whatever else is said
    for source in _KIND_ROW.sources:
        found = raw.find(source)
        try:
            kind: str = _kind(found).value
        except (TypeError, ValueError):
            continue
        if kind == "module" and is_root:
            return "program"
        return None if kind == "module" and name.startswith(_PLUMBING) else kind
    # The oldest emitters name no operation, and say what model was asked.
    is_named = any(raw.find(source) is not None for source in _KIND_ROW.sources)
    return None if is_named or not any(raw.find(source) is not None for source in _SIGNS_OF_A_CALL) else "lm"


def _take(row: Row, source: Source, found: Any, raw: RawSpan, said: dict[str, Any], cut: set[str]) -> None:
    try:
        read = row.read(found)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return
    value = read.value if isinstance(read, Partly) else read
    if said.setdefault(row.into, value) != value:
        return  # a name that is less preferred says something else
    if not isinstance(read, Partly):
        raw.drop(source)
    elif read.is_cut:
        cut.add(str(source))


def _content(said: dict[str, Any]) -> Reading:
    prompt, system = said.pop(_MESSAGES, None), said.pop(_SYSTEM, None)
    if system is not None:
        prompt = [system, *(prompt or ())]
    reasons = said.pop(names.FINISH_REASONS, [])
    reasons = [reason or None for reason in reasons]
    choices = [
        (text, reason or (reasons[index] if index < len(reasons) else None))
        for index, (text, reason) in enumerate(said.pop(_CHOICES, ()))
    ]
    written = orjson.dumps(prompt).decode() if prompt is not None else None
    return Reading(said, written, choices or [(None, reason) for reason in reasons or [None]])


_KIND_ROW = TABLE[0]
_SIGNS_OF_A_CALL: tuple[Source, ...] = (
    names.REQUEST_MODEL,
    Indexed("llm.input_messages"),
    Indexed("gen_ai.prompt"),
    "gen_ai.prompt",
)


def _read_on(row: Row, kind: str | None) -> bool:
    return row is not _KIND_ROW and (
        row.of == "any"
        or ((row.of == "call") == (kind == "lm") and row.of != "node")
        or (row.of == "node" and kind in _NODE_KINDS)
    )


_ROWS = {kind: tuple(row for row in TABLE if _read_on(row, kind)) for kind in (None, "lm", *_NODE_KINDS)}
