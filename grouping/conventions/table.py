"""The names by which other instrumentations say what our columns hold: one table.

OpenTelemetry's GenAI conventions have changed their names twice, and OpenInference and
traceloop have names of their own. `TABLE` says once which names fill which column, in
order of preference, and how their values are read; `foreign_spans` goes by it, and
`docs/conventions.md` shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tracetune.grouping.conventions import chat_messages as messages
from tracetune.grouping.conventions import flat_messages as flat
from tracetune.grouping.conventions import values
from tracetune.grouping.conventions.sources import Event, Events, Indexed, Member, Source
from tracetune.grouping.conventions.values import Partly
from tracetune.tracer import names

_DETAILS = "gen_ai.client.inference.operation.details"
_PARAMETERS = "llm.invocation_parameters"
# What a reading is known by that has no attribute of ours.
MESSAGES, CHOICES, SYSTEM, NODE = "messages", "choices", "system", "node"

KINDS = {
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


def kind_of(value: Any) -> Any:
    """Our word for what a span is; the attribute says more, and is kept."""
    if value not in KINDS:
        raise ValueError("a kind that has no name here")
    return Partly(KINDS[value])


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
        "what the span is: program, module, tool or lm", kind_of, names.KIND,
    ),
    Row(
        "operation", "any", (names.OPERATION, names.TRACELOOP_REQUEST),
        "the operation's name", _operation, names.OPERATION,
    ),
    Row(
        "module", "node", ("gen_ai.tool.name", "tool.name", "traceloop.entity.name", "gen_ai.agent.name",
                           "gen_ai.workflow.name", "agent.name", "graph.node.name", "graph.node.id"),
        "the node's name, where it is not the span's", values.text, NODE,
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
        "the prompt, as messages of parts", messages.foreign_messages, MESSAGES,
    ),
    Row(
        "messages", "call", ("gen_ai.system_instructions", Event(_DETAILS, "gen_ai.system_instructions")),
        "the system's message, before the others", messages.system_message, SYSTEM,
    ),
    Row(
        "messages", "call", (Indexed("llm.input_messages"), Indexed("gen_ai.prompt")),
        "the prompt, one attribute a field", flat.flat_messages, MESSAGES,
    ),
    Row(
        "messages", "call", ("gen_ai.prompt", Event("gen_ai.content.prompt", "gen_ai.prompt")),
        "the prompt, as JSON or as one text", messages.prompt_text, MESSAGES,
    ),
    Row(
        "messages", "call", (Events(("gen_ai.system.message", "gen_ai.developer.message", "gen_ai.user.message",
                                     "gen_ai.assistant.message", "gen_ai.tool.message")),),
        "the prompt, one event a message", messages.event_messages, MESSAGES,
    ),
    Row(
        "messages", "call", (Indexed("llm.prompts"),),
        "the prompt of a text completion, as a user's message", flat.flat_prompt, MESSAGES,
    ),
    Row(
        "messages", "call", (Member("input.value", "messages"),),
        "the prompt, in an OpenAI request", messages.foreign_messages, MESSAGES,
    ),
    Row(
        "completion", "call", (names.OUTPUT_MESSAGES, Event(_DETAILS, names.OUTPUT_MESSAGES)),
        "text and finish reason of each choice, as messages of parts", messages.foreign_choices, CHOICES,
    ),
    Row(
        "completion", "call", (Indexed("llm.output_messages"), Indexed("gen_ai.completion")),
        "the same, one attribute a field", flat.flat_choices, CHOICES,
    ),
    Row(
        "completion", "call", ("gen_ai.completion", Event("gen_ai.content.completion", "gen_ai.completion")),
        "the same, as JSON or as one text", messages.completion_text, CHOICES,
    ),
    Row(
        "completion", "call", (Events(("gen_ai.choice",)),),
        "the same, one event a choice", messages.event_choices, CHOICES,
    ),
    Row(
        "completion", "call", (Indexed("llm.choices"),),
        "the answers of a text completion", flat.flat_completion, CHOICES,
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
    _stamp("redacted", names.REDACTED, "prompts and answers that redaction changed", values.texts),
    _stamp("status", names.STATUS, "ok, error or format_error", values.text),
    Row("lm_parent", "call", (names.LM_PARENT,), "the LM span around it", values.any_text, names.LM_PARENT),
    Row("kind", "call", (names.CALL_KIND,), "call or score", values.any_text, names.CALL_KIND),
)  # fmt: skip

# The events that hold messages, whether of a span or as log records beside it.
MESSAGE_EVENTS = tuple(
    sorted(
        event
        for row in TABLE
        if row.into in (MESSAGES, SYSTEM, CHOICES)
        for source in row.sources
        if isinstance(source, Event | Events)
        for event in (source.events if isinstance(source, Events) else (source.event,))
    )
)
