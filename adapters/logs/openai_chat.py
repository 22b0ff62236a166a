"""OpenAI: logged chat-completion requests and their responses, one call an object.

`{"request": …, "response": …}` is one call; so is a batch's input line and its output
line together, which find each other by `custom_id` within one file. A request's own
`metadata` may name the run, the example, the rollout and the module.

Reference:
    OpenAI's API reference: chat completions, stored completions, and batch input and output files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from tracetune.adapters.formats import DEFAULTS, FormatOptions, Line, Refused
from tracetune.adapters.logs.chat import answers_of, messages_of
from tracetune.adapters.logs.formats_seen import not_as_asked
from tracetune.adapters.logs.lines import LoggedSpan, call_attributes
from tracetune.adapters.logs.objects import objects
from tracetune.adapters.logs.values import dumped, example_of, fields_of, loaded, nanoseconds, span_hex, trace_hex
from tracetune.tracer import names

_STAMPS = {
    "run": names.RUN,
    "split": names.SPLIT,
    "rollout_id": names.ROLLOUT_ID,
    "example_id": names.EXAMPLE_ID,
    "module": names.MODULE,
    "key": names.KEY,
}
_WANTED = "a chat completion's request and response"


def read(file: BinaryIO, options: FormatOptions = DEFAULTS) -> Iterator[Line | Refused]:
    """The calls of a file, and what in it cannot be read."""
    waiting: dict[str, tuple[str, dict[str, Any]]] = {}
    for found in objects(file):
        if isinstance(found, Refused):
            yield found
            continue
        place, value = found
        custom = value.get("custom_id")
        request, response = _parts(value)
        if isinstance(custom, str) and (request is None) != (response is None):
            if custom not in waiting:
                waiting[custom] = (place, value)
                continue
            other_request, other_response = _parts(waiting.pop(custom)[1])
            request, response = request or other_request, response or other_response
        if request is None or response is None:
            yield not_as_asked(place, value, "openai", _WANTED)
            continue
        try:
            yield _call(request, response)
        except (ValueError, TypeError, KeyError) as error:
            yield Refused(place, str(error))
    for place, value in waiting.values():
        missing = "response" if _parts(value)[1] is None else "request"
        yield Refused(place, f"the file has no {missing} of custom_id {value['custom_id']!r}; give both files at once")


def _parts(value: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Request and response of a logged call, of a stored completion, or of half a batch line."""
    if value.get("object") == "chat.completion" and isinstance(value.get("messages"), list):
        return dict(value), dict(value)
    request, response = loaded(value.get("request")), loaded(value.get("response"))
    request = request if isinstance(request, dict) else value.get("body")
    if isinstance(response, dict) and isinstance(response.get("body"), dict):
        response = response["body"]
    if isinstance(request, dict) and isinstance(request.get("body"), dict):
        request = request["body"]
    return (
        request if isinstance(request, dict) and "messages" in request else None,
        response if isinstance(response, dict) and ("choices" in response or "error" in response) else None,
    )


def _call(request: Mapping[str, Any], response: Mapping[str, Any]) -> Line:
    messages = messages_of(request["messages"])
    if messages is None:
        raise ValueError("its messages are no chat messages")
    error = response.get("error")
    answers = answers_of(response)
    if not answers and not error:
        raise ValueError("its response has no choice that can be read")
    # What was asked and answered is who it is, where the response has no id.
    identity = str(response.get("id") or trace_hex(dumped([request, response])))
    metadata = fields_of(request.get("metadata"))
    stamps = {attribute: str(metadata[name]) for name, attribute in _STAMPS.items() if metadata.get(name) is not None}
    usage = fields_of(response.get("usage"))
    started = nanoseconds(response["created"]) if response.get("created") else 0
    attributes = call_attributes(
        messages,
        answers,
        model=request.get("model") or response.get("model"),
        sampling=request,
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        response_id=response.get("id"),
        provider="openai",
    )
    return LoggedSpan(
        trace=stamps.get(names.ROLLOUT_ID, identity),
        id=f"openai/{identity}",
        parent=None,
        name=f"chat {request.get('model') or ''}".strip(),
        kind="lm",
        started_at=started,
        ended_at=started,
        attributes=attributes
        | {
            names.MODULE: "program",
            names.EXAMPLE_ID: example_of(messages),
            names.EXECUTION: span_hex(f"openai/{identity}"),
        }
        | stamps,
        error=dumped(error) if error else None,
    ).line()
