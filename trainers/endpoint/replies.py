"""What clients are answered: response bodies and stream chunks of the two kinds of request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.trainers.endpoint.tool_calls import ToolReader

Json = dict[str, Any]
# The text of one token id.
TokenText = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Heading:
    """What all bodies of one response begin with."""

    id: str
    model: str
    prompt_tokens: int
    created: int = field(default_factory=lambda: int(time.time()))

    def of(self, kind: str, rows: Sequence[Row]) -> Json:
        """The first fields of a body of that kind."""
        version = rows[0].policy_version or None
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": version,
        }

    def usage(self, rows: Sequence[Row]) -> Json:
        """Token counts: a prompt counts once, however many choices it has."""
        completion_tokens = sum(len(row.completion_ids) for row in rows)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }


class Shape(Protocol):
    """How one kind of request is answered."""

    def response(self, heading: Heading, rows: Sequence[Row], texts: Sequence[str], reasons: Sequence[str]) -> Json:
        """The whole response."""

    def opening(self, heading: Heading, rows: Sequence[Row]) -> list[Json]:
        """The chunks that a stream opens with."""

    def chunk(self, heading: Heading, piece: Piece, first_token: int) -> Json:
        """The chunk for a piece whose tokens begin at `first_token`."""

    def usage_chunk(self, heading: Heading, rows: Sequence[Row]) -> Json:
        """The chunk that tells the usage at the end of a stream."""


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Answers of `/v1/chat/completions`.

    Attributes:
        token_text: the text of one token.
        logprobs: whether the client asked for log-probabilities.
        tools: reads tool calls, where the client offered tools.
    """

    token_text: TokenText
    logprobs: bool
    tools: ToolReader | None = None

    def response(self, heading: Heading, rows: Sequence[Row], texts: Sequence[str], reasons: Sequence[str]) -> Json:
        """The whole response."""
        choices = []
        for row, text, reason in zip(rows, texts, reasons, strict=True):
            content, calls, ended = (text, [], reason) if self.tools is None else self.tools.read(text, reason)
            message = {"role": "assistant", "content": content, "refusal": None}
            choices.append(
                {
                    "index": row.choice,
                    "message": {**message, "tool_calls": calls} if calls else message,
                    "logprobs": self._logprobs(row, 0, len(row.completion_ids)),
                    "finish_reason": ended,
                }
            )
        return {**heading.of("chat.completion", rows), "choices": choices, "usage": heading.usage(rows)}

    def opening(self, heading: Heading, rows: Sequence[Row]) -> list[Json]:
        """A chunk with each choice's role."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._chunk(heading, rows, [_chat_choice(row.choice, delta)]) for row in rows]

    def chunk(self, heading: Heading, piece: Piece, first_token: int) -> Json:
        """New text or calls, or the end."""
        if self.tools is None:
            delta, reason = ({"content": piece.text} if piece.text else {}), piece.finish_reason
        else:
            delta, reason = self.tools.delta(piece.row.choice, piece.text, piece.finish_reason)
        logprobs = self._logprobs(piece.row, first_token, piece.tokens)
        choice = _chat_choice(piece.row.choice, delta, logprobs, reason)
        return self._chunk(heading, [piece.row], [choice])

    def usage_chunk(self, heading: Heading, rows: Sequence[Row]) -> Json:
        """A chunk without choices."""
        return {**self._chunk(heading, rows, []), "usage": heading.usage(rows)}

    def _chunk(self, heading: Heading, rows: Sequence[Row], choices: list[Json]) -> Json:
        return {**heading.of("chat.completion.chunk", rows), "choices": choices}

    def _logprobs(self, row: Row, start: int, end: int) -> Json | None:
        if not self.logprobs:
            return None
        content = []
        for index in range(start, end - _end_token(row, end)):
            entry = self._entry(row.completion_ids[index], row.logprobs[index])
            alternatives = row.alternatives[index] if row.top_logprobs else []
            content.append({**entry, "top_logprobs": [self._entry(*alternative) for alternative in alternatives]})
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> Json:
        text = self.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


@dataclass(frozen=True, slots=True)
class TextShape:
    """Answers of `/v1/completions`.

    Attributes:
        token_text: the text of one token.
        logprobs: whether the client asked for log-probabilities.
    """

    token_text: TokenText
    logprobs: bool

    def response(self, heading: Heading, rows: Sequence[Row], texts: Sequence[str], reasons: Sequence[str]) -> Json:
        """The whole response."""
        choices = [
            self._choice(row, text, 0, len(row.completion_ids), reason)
            for row, text, reason in zip(rows, texts, reasons, strict=True)
        ]
        return {**heading.of("text_completion", rows), "choices": choices, "usage": heading.usage(rows)}

    def opening(self, heading: Heading, rows: Sequence[Row]) -> list[Json]:
        """Nothing: the first chunk has text."""
        return []

    def chunk(self, heading: Heading, piece: Piece, first_token: int) -> Json:
        """New text, or the end."""
        choice = self._choice(piece.row, piece.text, first_token, piece.tokens, piece.finish_reason)
        return {**heading.of("text_completion", [piece.row]), "choices": [choice]}

    def usage_chunk(self, heading: Heading, rows: Sequence[Row]) -> Json:
        """A chunk without choices."""
        return {**heading.of("text_completion", rows), "choices": [], "usage": heading.usage(rows)}

    def _choice(self, row: Row, text: str, start: int, end: int, reason: str | None) -> Json:
        logprobs = self._logprobs(row, start, end) if self.logprobs else None
        return {"index": row.choice, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, row: Row, start: int, end: int) -> Json:
        end -= _end_token(row, end)
        tokens = [self.token_text(token) for token in row.completion_ids[:end]]
        offsets = [0, *accumulate(map(len, tokens))]
        alternatives = [
            {self.token_text(token): logprob for token, logprob in row.alternatives[index]} if row.top_logprobs else {}
            for index in range(start, end)
        ]
        return {
            "tokens": tokens[start:end],
            "token_logprobs": row.logprobs[start:end],
            "top_logprobs": alternatives,
            "text_offset": offsets[start:end],
        }


def _chat_choice(index: int, delta: Json, logprobs: Json | None = None, reason: str | None = None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _end_token(row: Row, end: int) -> int:
    """1 where the last of the first `end` tokens is the end token, which has no text to show."""
    return int(row.ended and end == len(row.completion_ids))
