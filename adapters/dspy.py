"""DSPy: an execution for each call of a predictor, a call for each request to a language model.

A predictor is named as its program names it (`named_predictors`), so two that share one
signature are two modules. DSPy's callbacks cannot stop a rollout that was closed, and can
be set from one thread only; so the methods that call them are wrapped: those of modules
and tools, and the function that every language model's request goes through, where the
prompt is as the adapter has made it, demos and all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import dspy
from dspy.adapters.types.tool import Tool
from dspy.clients import execution as requests
from dspy.clients.call_result import legacy_output
from dspy.clients.lm15_boundary import history_messages
from dspy.utils.exceptions import AdapterParseError
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from tracetune.adapters.patching import attempt, replace
from tracetune.tracer import Choice, LMCall, Node, OpenExecution, count_as_format_error, session
from tracetune.tracer.scope import current_scope, enclosing_context

_NAMES = otel_context.create_key("tracetune-dspy-predictors")
_EXECUTION = "a module or tool of DSPy"
_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "n")


def install() -> Callable[[], None]:
    """Wrap modules, tools and requests; gives the function that puts the originals back."""
    put_back = replace(
        [
            (dspy.Module, "__call__", lambda original: _within(original, _begin_module)),
            (dspy.Module, "acall", lambda original: _within_later(original, _begin_module)),
            (Tool, "__call__", lambda original: _within(original, _begin_tool)),
            (Tool, "acall", lambda original: _within_later(original, _begin_tool)),
            (requests, "execute", _request),
            (requests, "aexecute", _request_later),
        ]
    )
    count_no_more = count_as_format_error(AdapterParseError)

    def undo() -> None:
        put_back()
        count_no_more()

    return undo


Begun = tuple[Context, OpenExecution | None]
Begin = Callable[[Any, Mapping[str, Any]], Begun]


def _within(original: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(instance: Any, *args: Any, **kwargs: Any) -> Any:
        if session.active is None:
            return original(instance, *args, **kwargs)
        begun = attempt(_EXECUTION, begin, instance, {**kwargs, **({"args": args} if args else {})})
        if begun is None:
            return original(instance, *args, **kwargs)
        context, execution = begun
        token = otel_context.attach(context)
        try:
            result = original(instance, *args, **kwargs)
        except BaseException as error:
            attempt(_EXECUTION, _end, execution, None, error)
            raise
        finally:
            otel_context.detach(token)
        attempt(_EXECUTION, _end, execution, result, None)
        return result

    return call


def _within_later(original: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    @functools.wraps(original)
    async def call(instance: Any, *args: Any, **kwargs: Any) -> Any:
        if session.active is None:
            return await original(instance, *args, **kwargs)
        begun = attempt(_EXECUTION, begin, instance, {**kwargs, **({"args": args} if args else {})})
        if begun is None:
            return await original(instance, *args, **kwargs)
        context, execution = begun
        token = otel_context.attach(context)
        try:
            result = await original(instance, *args, **kwargs)
        except BaseException as error:
            attempt(_EXECUTION, _end, execution, None, error)
            raise
        finally:
            otel_context.detach(token)
        attempt(_EXECUTION, _end, execution, result, None)
        return result

    return call


def _begin_module(instance: Any, given: Mapping[str, Any]) -> Begun:
    """A predictor is a module, what is around everything a program; other modules of DSPy are neither."""
    here = enclosing_context()
    named = otel_context.get_value(_NAMES, here)
    known: dict[int, str] = named if isinstance(named, dict) else {}
    if id(instance) not in known:
        # The outermost module's names stand: an inner one's are parts of them.
        known = {**_predictors(instance), **known}
        here = otel_context.set_value(_NAMES, known, here)
    is_first = current_scope(session.active, here).execution is None
    if not is_first and not isinstance(instance, dspy.Predict):
        return here, None
    name = known.get(id(instance), type(instance).__name__)
    return _entered(Node("program" if is_first else "module", name), given, here)


def _begin_tool(instance: Any, given: Mapping[str, Any]) -> Begun:
    return _entered(Node("tool", str(instance.name)), given, enclosing_context())


def _entered(node: Node, given: Mapping[str, Any], here: Context) -> Begun:
    execution = node.enter(given, context=here)
    return (here if execution is None else execution.context), execution


def _end(execution: OpenExecution | None, result: Any, error: BaseException | None) -> None:
    if execution is not None:
        given = result.toDict() if isinstance(result, dspy.Prediction) else result
        execution.end(given, error=error)


def _predictors(module: Any) -> dict[int, str]:
    """The names of a module's predictors; of one that is called by itself, its signature's."""
    found = module.named_predictors()
    if len(found) == 1 and type(module).__module__.startswith("dspy."):
        ((_, predictor),) = found
        signature = predictor.signature
        is_nameless = signature.__name__ == "StringSignature"
        return {id(predictor): signature.signature if is_nameless else signature.__name__}
    return {id(predictor): name for name, predictor in found}


def _request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def execute(lm: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        asked = attempt("a request of DSPy", _begin_call, lm, call)
        if asked is None:
            return original(lm, call, *args, **kwargs)
        try:
            with asked.entered():
                result = original(lm, call, *args, **kwargs)
        except BaseException as error:
            asked.fail(error)
            raise
        _answered(asked, lm, call, result)
        return result

    return execute


def _request_later(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def aexecute(lm: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        asked = attempt("a request of DSPy", _begin_call, lm, call)
        if asked is None:
            return await original(lm, call, *args, **kwargs)
        try:
            with asked.entered():
                result = await original(lm, call, *args, **kwargs)
        except BaseException as error:
            asked.fail(error)
            raise
        _answered(asked, lm, call, result)
        return result

    return aexecute


def _begin_call(lm: Any, call: Any, *, is_made: bool = False) -> LMCall | None:
    scope = current_scope(session.active)
    if scope.setting.policy is not None:
        call.cache = False  # a policy that is being trained is sampled anew, and its next version answers otherwise
    messages = history_messages(call.request) if call.request is not None else call.legacy["messages"]
    return LMCall.begin(
        messages,
        model=lm.model,
        sampling={name: call.legacy.get(name) for name in _SAMPLING},
        provider="dspy",
        is_made=is_made,
    )


def _answered(asked: LMCall, lm: Any, call: Any, result: Any) -> None:
    """End the call; where DSPy made a request for each choice, each is a call."""
    try:
        if not result.responses:
            asked.end(**_legacy(result))
            return
        first, *others = result.responses
        asked.end(**_response(first))
        for other in others:
            further = _begin_call(lm, call, is_made=True)
            if further is not None:
                further.end(**_response(other))
    except Exception as error:  # noqa: BLE001  the program asked for the result, not for our reading of it
        asked.unreadable(error)
        asked.end()


def _response(response: Any) -> dict[str, Any]:
    said = legacy_output(response)
    return {
        "response_id": response.id,
        "response_model": response.model,
        "choices": [_choice(said, str(response.finish_reason) if response.finish_reason else None)],
        "input_tokens": response.usage.input_tokens,
        "output_tokens": response.usage.output_tokens,
    }


def _legacy(result: Any) -> dict[str, Any]:
    """A result of an engine that answers as litellm does."""
    reasons = [getattr(choice, "finish_reason", None) for choice in getattr(result.raw, "choices", None) or ()]
    choices = [
        _choice(output if isinstance(output, dict) else {"text": output}, reason)
        for output, reason in zip(result.outputs, [*reasons, *[None] * len(result.outputs)], strict=False)
    ]
    return {
        "response_id": getattr(result.raw, "id", None),
        "response_model": result.response_model,
        "choices": choices,
        "input_tokens": result.usage.get("prompt_tokens"),
        "output_tokens": result.usage.get("completion_tokens"),
    }


def _choice(said: Mapping[str, Any], reason: str | None) -> Choice:
    text = said.get("text") or ""
    if not said.get("tool_calls"):
        return Choice(text, reason)
    return Choice(text, reason, {"role": "assistant", "content": said.get("text"), "tool_calls": said["tool_calls"]})
