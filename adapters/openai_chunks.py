"""The chunks of a streamed chat completion, put together again: OpenAI's, and litellm's, which have fewer fields."""

from __future__ import annotations

from typing import Any

from tracetune.tracer import Choice, LMCall


class Collected:
    """What a stream has brought so far; ends its call once, with that.

    Attributes:
        is_at_rest: the reader has its chunk, and no other is being waited for.
    """

    def __init__(self, call: LMCall) -> None:
        self.is_at_rest = True
        self._call = call
        self._response_id: str | None = None
        self._model: str | None = None
        self._usage: Any = None
        self._choices: dict[int, _StreamedChoice] = {}

    def add(self, chunk: Any) -> None:
        """Take in one chunk."""
        try:
            self._add(chunk)
        except Exception as error:  # noqa: BLE001  what a server sends is the program's to judge
            self._call.unreadable(error)

    def _add(self, chunk: Any) -> None:
        self._response_id = self._response_id or chunk.id
        self._model = self._model or chunk.model
        self._usage = getattr(chunk, "usage", None) or self._usage
        for choice in chunk.choices or ():
            self._choices.setdefault(choice.index, _StreamedChoice()).add(choice)

    def closed(self) -> None:
        """The response was closed: by the reader, or by the stream itself, which may have failed and says so next."""
        if self.is_at_rest:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """End the call; after the first time nothing happens."""
        usage = self._usage
        self._call.end(
            response_id=self._response_id,
            response_model=self._model,
            choices=[choice.whole() for _, choice in sorted(self._choices.items())],
            input_tokens=usage.prompt_tokens if usage is not None else None,
            output_tokens=usage.completion_tokens if usage is not None else None,
            error=error,
        )


class _StreamedChoice:
    """One choice of a stream."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None

    def add(self, choice: Any) -> None:
        delta = choice.delta
        self._finish_reason = choice.finish_reason or self._finish_reason
        if delta is None:
            return
        if delta.content:
            self._texts.append(delta.content)
        if getattr(delta, "refusal", None):
            self._refusals.append(delta.refusal)
        for piece in getattr(delta, "tool_calls", None) or ():
            call = self._tool_calls.setdefault(
                piece.index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
            )
            call["id"] = piece.id or call["id"]
            if piece.function is not None:
                call["function"]["name"] += piece.function.name or ""
                call["function"]["arguments"] += piece.function.arguments or ""

    def whole(self) -> Choice:
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text or None if self._tool_calls else text}
        if self._tool_calls:
            message["tool_calls"] = [call for _, call in sorted(self._tool_calls.items())]
        if self._refusals:
            message["refusal"] = "".join(self._refusals)
        return Choice(text, self._finish_reason, message)
