"""`record_call`: a call that a client of one's own has made already, told in one go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracetune.tracer import session
from tracetune.tracer.calls import Choice, LMCall
from tracetune.types import Sampling


def record_call(
    *,
    messages: Sequence[Mapping[str, Any]],
    completion: str | Mapping[str, Any],
    response_id: str | None = None,
    model: str = "",
    finish_reason: str | None = None,
    started_at: int | None = None,
    ended_at: int | None = None,
    sampling: Sampling | Mapping[str, Any] | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    error: BaseException | None = None,
    provider: str = "custom",
) -> str | None:
    """Record a call that a home-made client has made, in the scope that this is called in.

    Args:
        messages: the prompt in OpenAI's chat shape.
        completion: the text that came back; or the whole message, where it has tool calls say.
        response_id: as the client received it; joins the call to the endpoint's exact tokens.
        model: its name.
        finish_reason: "stop", "length" and so on.
        started_at: nanoseconds since the epoch; now by default.
        ended_at: likewise.
        sampling: what the request asked for.
        input_tokens: of the prompt, as the response counts them.
        output_tokens: of the completion, likewise.
        error: what the request ended with, where it failed; the completion is then what came before.
        provider: whose API it is.

    Returns:
        The call's id, or None where nothing records.

    Example:
        >>> record_call(messages=[{"role": "user", "content": "2 + 2?"}], completion="4")
    """
    if session.active is None:
        return None
    asked = sampling.model_dump() if isinstance(sampling, Sampling) else sampling
    call = LMCall.begin(messages, model, asked, provider, started_at=started_at, is_made=True)
    if call is None:
        return None
    text, message = (completion, None) if isinstance(completion, str) else (completion.get("content"), completion)
    choices = [Choice(text if isinstance(text, str) else "", finish_reason, message)]
    call.end(
        response_id=response_id,
        choices=choices if completion or error is None else (),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        error=error,
        ended_at=ended_at,
    )
    return call.id
