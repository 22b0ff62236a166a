"""LangChain's messages and results as the tracer takes them: in OpenAI's chat shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from tracetune.tracer import Choice

_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "n")
# Ids that LangChain makes up where a provider gives none.
_OWN_IDS = ("run-", "run--", "lc_")


def prompt(messages: Iterable[BaseMessage]) -> list[dict[str, Any]]:
    """Messages as OpenAI's clients send them.

    Example:
        >>> from langchain_core.messages import HumanMessage
        >>> prompt([HumanMessage("who?")])
        [{'role': 'user', 'content': 'who?'}]
    """
    return [_message(message) for message in messages]


def model(asked: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The model's name, as the request has it."""
    return str(asked.get("model") or asked.get("model_name") or metadata.get("ls_model_name") or "")


def sampling(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the request asks for."""
    found = {name: asked.get(name) for name in _SAMPLING}
    if isinstance(asked.get("max_completion_tokens"), int):
        found["max_tokens"] = asked["max_completion_tokens"]
    return {name: value for name, value in found.items() if isinstance(value, int | float | str | list | tuple)}


def answer(result: Any) -> dict[str, Any]:
    """What a result says, as the arguments of `LMCall.end`."""
    generations = list(_generations(result))
    if not generations:
        return {}
    messages = [getattr(generation, "message", None) for generation in generations]
    first = messages[0]
    told = getattr(first, "response_metadata", None) or {}
    overall = getattr(result, "llm_output", None) or {}
    usage = getattr(first, "usage_metadata", None) or {}
    return {
        "response_id": _response_id(overall, told, first),
        "response_model": told.get("model_name") or overall.get("model_name"),
        "choices": [_choice(*pair) for pair in zip(generations, messages, strict=True)],
        "input_tokens": usage.get("input_tokens"),
        "output_tokens": usage.get("output_tokens"),
    }


def texts_of(result: Any) -> list[str]:
    """The texts of a result."""
    return [generation.text for generation in _generations(result)]


def _generations(result: Any) -> Iterator[Any]:
    prompts: Sequence[Any] = getattr(result, "generations", None) or ()
    yield from prompts[0] if prompts else ()


def _choice(generation: Any, message: BaseMessage | None) -> Choice:
    told = {**(getattr(message, "response_metadata", None) or {}), **(generation.generation_info or {})}
    reason = told.get("finish_reason") or told.get("stop_reason")
    if message is None:
        return Choice(generation.text, reason)
    return Choice(generation.text, reason, _message(message))


def _response_id(overall: Mapping[str, Any], told: Mapping[str, Any], message: Any) -> str | None:
    found = overall.get("id") or told.get("id") or getattr(message, "id", None)
    return found if isinstance(found, str) and not found.startswith(_OWN_IDS) else None


def _message(message: BaseMessage) -> dict[str, Any]:
    converted: dict[str, Any] = convert_to_openai_messages(message)
    if converted.get("tool_calls") and not converted.get("content"):
        converted["content"] = None  # as OpenAI's clients send it
    return converted
