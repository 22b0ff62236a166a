"""The callback handler: what LangChain tells of its runs, told to the tracer.

Callbacks may run in another thread or context than the run that they tell of, so nothing
is attached here: where a run stands is told by its parent's id. Whatever runs inside a
node (a decorated function, a client of its own) is found the other way, by the context
variable in which LangChain keeps the node's configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers import context as hooks
from opentelemetry.context import Context

from tracetune.adapters.langchain import texts
from tracetune.adapters.langchain.runs import Run
from tracetune.adapters.patching import attempt
from tracetune.errors import RolloutClosed
from tracetune.tracer import LMCall, count_as_format_error, session
from tracetune.tracer.foreign import add_reporter
from tracetune.tracer.scope import add_locator

Prompt = list[dict[str, Any]]

# The runs that have begun and not ended, of all threads and of all handlers.
_runs: dict[UUID, Run] = {}

# Calls that began where this is read, each until a client has reported it too. Nothing is ever reset:
# a call that has ended, or has begun to answer, is passed over.
_announced: ContextVar[tuple[Run, ...]] = ContextVar("tracetune_langchain_calls", default=())


class TracetuneCallback(BaseCallbackHandler):
    """Records the runs that it is told of, once, however many such handlers there are.

    Example:
        >>> TracetuneCallback().run_inline
        True
    """

    # In the thread and task of the run: so what is recorded has ended before the program goes on.
    run_inline = True
    # A rollout that was closed must not call a model; nothing else is raised here.
    raise_error = True

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **told: Any) -> None:
        """A chain, a node, a graph, or one of the wrappers around them begins."""
        _safely(_begin, run_id, serialized, told, inputs, told.get("run_type") or "chain")

    def on_tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, **told: Any) -> None:
        """A tool begins."""
        inputs = told.get("inputs")
        _safely(_begin, run_id, serialized, told, input_str if inputs is None else inputs, "tool")

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **told: Any) -> None:
        """A retriever begins, which is a tool."""
        _safely(_begin, run_id, serialized, told, query, "tool")

    def on_chat_model_start(
        self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID, **told: Any
    ) -> None:
        """A chat model is asked.

        Raises:
            RolloutClosed: if its rollout was closed from outside.
        """
        _safely(_ask, run_id, serialized, told, lambda: texts.prompt(messages[0]))

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **told: Any) -> None:
        """A model of text completions is asked.

        Raises:
            RolloutClosed: if its rollout was closed from outside.
        """
        _safely(_ask, run_id, serialized, told, lambda: [{"role": "user", "content": prompts[0]}])

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **told: Any) -> None:
        """A model's answer has begun; a client that would report it as well has done so by now."""
        run = _runs.get(run_id)
        if run is not None:
            run.has_answered = True

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **told: Any) -> None:
        """A model has answered."""
        _safely(_answered, run_id, response, None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **told: Any) -> None:
        """A model has not answered, or not to the end."""
        # A stream that its reader leaves has ended well, with what there was.
        _safely(_answered, run_id, told.get("response"), None if isinstance(error, GeneratorExit) else error)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **told: Any) -> None:
        """A run has given something."""
        _safely(_end, run_id, outputs, None)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **told: Any) -> None:
        """A run has raised something."""
        _safely(_end, run_id, None, None if _is_no_failure(error) else error)

    def on_tool_end(self, output: Any, *, run_id: UUID, **told: Any) -> None:
        """A tool has given something."""
        _safely(_end, run_id, output, None)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **told: Any) -> None:
        """A retriever has found something."""
        _safely(_end, run_id, documents, None)

    on_tool_error = on_retriever_error = on_chain_error


def install() -> Callable[[], None]:
    """Give every run the handler; gives the function that takes it away again."""
    # A variable of which every thread and task sees the default.
    callback = TracetuneCallback()
    variable: ContextVar[TracetuneCallback | None] = ContextVar("tracetune_callback", default=callback)
    # LangChain has no way to take a hook away. Where the list is not found, nothing is registered.
    registered = hooks._configure_hooks
    hooks.register_configure_hook(variable, inheritable=True)
    count_no_more = count_as_format_error(OutputParserException)

    def undo() -> None:
        registered[:] = [hook for hook in registered if hook[0] is not variable]
        count_no_more()
        _runs.clear()

    return undo


def _locate() -> Context | None:
    """Where code runs: in a call that is being made, else in the node that LangChain's configuration tells of."""
    # Asked by every decorator, of programs without LangChain too: they go on whatever LangChain keeps there.
    context: Context | None = attempt("the place of code in a run of LangChain", _context_here)
    return context


def _context_here() -> Context | None:
    for run in _announced.get():
        if run.call is not None and run.call.is_alone and not run.has_answered:
            return run.call.context
    config = var_child_runnable_config.get()
    manager = config.get("callbacks") if config else None
    node = _runs.get(getattr(manager, "parent_run_id", None))  # type: ignore[arg-type]  # there may be none
    return node.context if node is not None else None


def _is_reporting() -> bool:
    """Whether a call of ours is under way here, also when its answer has begun."""
    return any(run.id in _runs for run in _announced.get())


# For as long as this is imported, since callbacks are also passed by hand; with no run under way it finds none.
add_locator(_locate)
add_reporter(_is_reporting)


def _begin(run_id: UUID, serialized: Any, told: Mapping[str, Any], given: Any, kind: str) -> None:
    run = _new_run(run_id, serialized, told)
    if run is not None:
        run.begin(given, kind)


def _ask(
    run_id: UUID, serialized: Any, told: Mapping[str, Any], read_prompt: Callable[[], list[dict[str, Any]]]
) -> None:
    run = _new_run(run_id, serialized, told)
    if run is None:
        return
    prompt = read_prompt()
    run.begin_call(prompt, is_named=told.get("name") not in (None, _class_name(serialized)))
    asked = told.get("invocation_params") or {}
    try:
        run.call = LMCall.begin(
            prompt,
            model=texts.model(asked, run.metadata),
            sampling=texts.sampling(asked),
            provider=str(run.metadata.get("ls_provider") or "langchain"),
            context=run.context,
        )
    except RolloutClosed as error:
        _end(run_id, None, error)
        raise
    if run.call is not None:
        _announced.set((*(other for other in _announced.get() if other.call and other.call.is_alone), run))


def _answered(run_id: UUID, response: Any, error: BaseException | None) -> None:
    run = _runs.get(run_id)
    if run is None:
        return
    if run.call is not None:
        try:
            read = texts.answer(response)
        except Exception as failure:  # noqa: BLE001  what a model answers is the program's to judge
            run.call.unreadable(failure)
            read = {}
        run.call.end(**read, error=error)
    _end(run_id, texts.texts_of(response), error)


def _end(run_id: UUID, given: Any, error: BaseException | None) -> None:
    run = _runs.pop(run_id, None)
    if run is not None:
        run.end(given, error)


def _new_run(run_id: UUID, serialized: Any, told: Mapping[str, Any]) -> Run | None:
    """The run that begins; None where nothing records, or another handler of ours knows it already."""
    if session.active is None or run_id in _runs:
        return None
    parent = _runs.get(told["parent_run_id"]) if told.get("parent_run_id") else None
    name = str(told.get("name") or _class_name(serialized) or "chain")
    run = _runs[run_id] = Run(run_id, parent, name, told.get("tags") or (), told.get("metadata") or {})
    return run


def _safely(act: Callable[..., None], *arguments: Any) -> None:
    attempt("a run of LangChain", act, *arguments)


def _is_no_failure(error: BaseException) -> bool:
    """Whether a run ended by leaving: its stream was not read to the end, or LangGraph pauses or goes elsewhere."""
    return isinstance(error, GeneratorExit) or any(kind.__name__ == "GraphBubbleUp" for kind in type(error).__mro__)


def _class_name(serialized: Any) -> str:
    described = serialized or {}
    return str(described.get("name") or (described.get("id") or [""])[-1])
