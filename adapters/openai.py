"""The OpenAI SDK's chat completions, versions 2 and 3: plain, async, streamed and raw.

`create` and `parse` of both resource classes are wrapped. A wrapped call begins an LM
span, sends its two headers with the request, gives the caller exactly what the SDK gave,
and ends the span with what was in it; a stream's span lasts until the stream is done.
The SDK's `with_raw_response` keeps the methods that it found when a client first used
it, so a client that did so before anything recorded goes on unseen by that way.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from openai import AsyncStream, Stream
from openai._legacy_response import LegacyAPIResponse
from openai.resources.chat.completions import AsyncCompletions, Completions
from openai.types.chat import ChatCompletion

from tracetune.adapters.openai_chunks import Collected
from tracetune.adapters.patching import attempt, replace
from tracetune.tracer import Choice, LMCall

_SAMPLING = ("temperature", "top_p", "max_tokens", "seed", "stop", "n")


def install() -> Callable[[], None]:
    """Wrap the resource classes' methods; gives the function that puts the originals back."""
    wrappers = ((Completions, _wrapped), (AsyncCompletions, _wrapped_async))
    return replace([(resource, name, wrapped) for resource, wrapped in wrappers for name in ("create", "parse")])


def _wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def request(resource: Any, **arguments: Any) -> Any:
        call = attempt("a request of openai", _begin, arguments)
        if call is None:
            return original(resource, **arguments)
        try:
            with call.entered():
                response = original(resource, **arguments)
        except BaseException as error:
            call.fail(error)
            raise
        _follow(call, response)
        return response

    return request


def _wrapped_async(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(resource: Any, **arguments: Any) -> Any:
        call = attempt("a request of openai", _begin, arguments)
        if call is None:
            return await original(resource, **arguments)
        try:
            with call.entered():
                response = await original(resource, **arguments)
        except BaseException as error:
            call.fail(error)
            raise
        _follow(call, response)
        return response

    return request


def _begin(arguments: dict[str, Any]) -> LMCall | None:
    """Begin a call from the request's arguments, and add its headers to them."""
    messages = arguments.get("messages")
    if messages is None:
        return None  # the SDK will say what is missing
    if not isinstance(messages, list | tuple):
        messages = arguments["messages"] = list(messages)  # an iterator could be read only once
    model = arguments.get("model")
    call = LMCall.begin(
        [_plain(message) for message in messages],
        model=model if isinstance(model, str) else "",
        sampling=_sampling(arguments),
        provider="openai",
    )
    if call is not None:
        arguments["extra_headers"] = {**(arguments.get("extra_headers") or {}), **call.headers()}
    return call


def _sampling(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What the request asks for; the SDK's own marks for what was not given are left out."""
    asked = {name: arguments.get(name) for name in _SAMPLING}
    if isinstance(arguments.get("max_completion_tokens"), int):
        asked["max_tokens"] = arguments["max_completion_tokens"]
    extra = arguments.get("extra_body")
    if isinstance(extra, Mapping):
        asked["top_k"] = extra.get("top_k")
    return {name: value for name, value in asked.items() if isinstance(value, int | float | str | list | tuple)}


def _plain(message: Any) -> Any:
    """A message as the SDK sends it; programs also append its own message objects to the prompt."""
    return message.model_dump(exclude_unset=True) if hasattr(message, "model_dump") else message


def _follow(call: LMCall, response: Any) -> None:
    """End the call with what the SDK gave, now or when the stream is done."""
    try:
        _read(call, response)
    except Exception as error:  # noqa: BLE001  the program asked for the response, not for our reading of it
        call.unreadable(error)
        call.end()


def _read(call: LMCall, response: Any) -> None:
    # A raw response keeps what it has parsed, and gives the same object to the caller who asks for it.
    given = response.parse() if isinstance(response, LegacyAPIResponse) else response
    if isinstance(given, ChatCompletion):
        usage = given.usage
        call.end(
            response_id=given.id,
            response_model=given.model,
            choices=[_choice(choice) for choice in given.choices],
            input_tokens=usage.prompt_tokens if usage is not None else None,
            output_tokens=usage.completion_tokens if usage is not None else None,
        )
    elif isinstance(given, Stream):
        _follow_stream(call, given)
    elif isinstance(given, AsyncStream):
        _follow_async_stream(call, given)
    else:
        call.end()  # a response whose body the caller reads as it comes


def _choice(choice: Any) -> Choice:
    message = choice.message.model_dump(exclude_none=True, exclude={"parsed"})
    message.setdefault("content", None)
    return Choice(message["content"] or "", choice.finish_reason, message)


def _follow_stream(call: LMCall, stream: Any) -> None:
    collected = Collected(call)

    def observed(chunks: Iterator[Any]) -> Iterator[Any]:
        try:
            collected.is_at_rest = False
            for chunk in chunks:
                collected.add(chunk)
                collected.is_at_rest = True
                yield chunk
                collected.is_at_rest = False
        except Exception as error:
            collected.end(error)
            raise
        finally:
            collected.end()

    def close() -> None:
        close_response()
        collected.closed()

    # All ways to read a stream go by its iterator, and all ways to close one by its response.
    stream._iterator = observed(stream._iterator)
    close_response, stream.response.close = stream.response.close, close


def _follow_async_stream(call: LMCall, stream: Any) -> None:
    collected = Collected(call)

    async def observed(chunks: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            collected.is_at_rest = False
            async for chunk in chunks:
                collected.add(chunk)
                collected.is_at_rest = True
                yield chunk
                collected.is_at_rest = False
        except Exception as error:
            collected.end(error)
            raise
        finally:
            collected.end()

    async def close() -> None:
        await close_response()
        collected.closed()

    stream._iterator = observed(stream._iterator)
    close_response, stream.response.aclose = stream.response.aclose, close
