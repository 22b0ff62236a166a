"""litellm's `completion` and `acompletion`: plain, streamed, and through its router.

litellm tells its callbacks of a success from another thread, when the program may be
done already. So it is the request itself that is followed: both functions hand it to a
dispatcher of their module, wherever a program has imported them from, and that is
wrapped. A client of its own that litellm calls in turn reports the same call inside this
one. litellm keeps hold of its streams: one that is neither read to its end nor closed is
recorded when the process ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from litellm.chat_completions import dispatch
from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.types.utils import ModelResponse

from tracetune.adapters.openai_chunks import Collected
from tracetune.adapters.patching import attempt, replace
from tracetune.tracer import Choice, LMCall

_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "seed", "stop", "n")

# What the streams that are being read have brought so far.
_streams: weakref.WeakKeyDictionary[CustomStreamWrapper, Collected] = weakref.WeakKeyDictionary()


def install() -> Callable[[], None]:
    """Wrap both dispatchers, and the stream's two ways to be read; gives the function that undoes that."""
    return replace(
        [
            *((dispatch, name, _Dispatcher) for name in ("_DISPATCH", "_ADISPATCH")),
            (CustomStreamWrapper, "__next__", _observed),
            (CustomStreamWrapper, "__anext__", _observed_async),
            (CustomStreamWrapper, "close", _closing),
            (CustomStreamWrapper, "aclose", _closing_async),
        ]
    )


def _observed(read: Callable[..., Any]) -> Callable[..., Any]:
    def observed(stream: CustomStreamWrapper) -> Any:
        collected = _reading(stream)
        try:
            chunk = read(stream)
        except BaseException as error:
            _broken(collected, error)
            raise
        return _passed(collected, chunk)

    return observed


def _observed_async(read: Callable[..., Any]) -> Callable[..., Any]:
    async def observed(stream: CustomStreamWrapper) -> Any:
        collected = _reading(stream)
        try:
            chunk = await read(stream)
        except BaseException as error:
            _broken(collected, error)
            raise
        return _passed(collected, chunk)

    return observed


def _closing(close: Callable[..., Any]) -> Callable[..., Any]:
    def closed(stream: CustomStreamWrapper) -> None:
        close(stream)
        _closed(stream)

    return closed


def _closing_async(close: Callable[..., Any]) -> Callable[..., Any]:
    async def closed(stream: CustomStreamWrapper) -> None:
        await close(stream)
        _closed(stream)

    return closed


class _Dispatcher:
    """litellm's own, with a call around each request."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def run(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any], **how: Any) -> Any:
        asked = dict(keywords)
        call = attempt("a request of litellm", _begin, arguments, asked)
        if call is None:
            return self._original.run(arguments, keywords, **how)
        try:
            with call.entered():
                response = self._original.run(arguments, asked, **how)
        except BaseException as error:
            call.fail(error)
            raise
        _follow(call, response)
        return response

    async def arun(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any], **how: Any) -> Any:
        asked = dict(keywords)
        call = attempt("a request of litellm", _begin, arguments, asked)
        if call is None:
            return await self._original.arun(arguments, keywords, **how)
        try:
            with call.entered():
                response = await self._original.arun(arguments, asked, **how)
        except BaseException as error:
            call.fail(error)
            raise
        _follow(call, response)
        return response


def _begin(arguments: tuple[Any, ...], asked: dict[str, Any]) -> LMCall | None:
    """Begin a call from the request's arguments, and add its headers to them."""
    model, messages, *_ = (*arguments, *(None, None))
    messages = asked.get("messages") if messages is None else messages
    if messages is None:
        return None  # litellm will say what is missing
    sampling = {name: asked.get(name) for name in _SAMPLING}
    if asked.get("max_completion_tokens") is not None:
        sampling["max_tokens"] = asked["max_completion_tokens"]
    call = LMCall.begin(
        [message.model_dump(exclude_none=True) if hasattr(message, "model_dump") else message for message in messages],
        model=str(asked.get("model", model) or ""),
        sampling={
            name: value for name, value in sampling.items() if isinstance(value, int | float | str | list | tuple)
        },
        provider="litellm",
    )
    if call is not None:
        asked["extra_headers"] = {**(asked.get("extra_headers") or {}), **call.headers()}
    return call


def _follow(call: LMCall, response: Any) -> None:
    """End the call with what came back, now or when the stream is done."""
    try:
        if isinstance(response, CustomStreamWrapper):
            _streams[response] = Collected(call)
        elif isinstance(response, ModelResponse):
            _read(call, response)
        else:
            call.end()
    except Exception as error:  # noqa: BLE001  the program asked for the response, not for our reading of it
        call.unreadable(error)
        call.end()


def _read(call: LMCall, response: Any) -> None:
    usage = getattr(response, "usage", None)
    call.end(
        response_id=response.id,
        response_model=response.model,
        choices=[_choice(choice) for choice in response.choices],
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
    )


def _choice(choice: Any) -> Choice:
    message = {
        name: value
        for name, value in choice.message.model_dump(exclude_none=True).items()
        if name in ("role", "content", "tool_calls", "refusal")
    }
    message.setdefault("content", None)
    return Choice(message["content"] or "", choice.finish_reason, message)


def _reading(stream: CustomStreamWrapper) -> Collected | None:
    collected = _streams.get(stream)
    if collected is not None:
        collected.is_at_rest = False
    return collected


def _closed(stream: CustomStreamWrapper) -> None:
    collected = _streams.get(stream)
    if collected is not None:
        collected.closed()


def _passed(collected: Collected | None, chunk: Any) -> Any:
    if collected is not None:
        collected.add(chunk)
        collected.is_at_rest = True
    return chunk


def _broken(collected: Collected | None, error: BaseException) -> None:
    if collected is not None:
        is_done = isinstance(error, StopIteration | StopAsyncIteration | GeneratorExit)
        collected.end(None if is_done else error)
