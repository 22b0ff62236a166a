"""A row: one choice of one response, from the moment it waits to its last token."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tracetune.trainers.endpoint.grammars import Constraint
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.text import Decode, GrowingText
from tracetune.types import Completion, Journal, Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What a row hands to the connection that asked for it.

    Attributes:
        row: whose it is.
        text: what has come since the last piece.
        tokens: how many tokens the row has had so far.
        finish_reason: on the last piece, why the row ended.
        problem: on the last piece, what went wrong instead.
    """

    row: Row
    text: str
    tokens: int
    finish_reason: str | None = None
    problem: Problem | None = None


@dataclass(slots=True, eq=False)
class Row:
    """One choice being decoded.

    Attributes:
        receive: takes the row's pieces: one at the end, or one for each bit of text where
            the row is `streamed`. It is called on the event loop's thread.
        sampling: what is in force, every default filled in.
        top_logprobs: how many alternatives to keep for each token.
        constraint: rules out tokens, where the client asked for JSON.
        adapter: what it is decoded with; None: the model as it is.
        cancelled: set when the client has left.
    """

    response_id: str
    choice: int
    model: str
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    receive: Callable[[Piece], None]
    streamed: bool = False
    top_logprobs: int = 0
    call_id: str | None = None
    module: str | None = None
    constraint: Constraint | None = None
    adapter: str | None = None
    cancelled: bool = False
    policy_version: str = ""
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)
    ended: bool = False
    started_at: int = field(default_factory=time.time_ns)
    source: random.Random = field(init=False)
    _max_tokens: int = field(init=False)
    _begun: bool = field(init=False, default=False)
    _text: GrowingText | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        assert self.sampling.max_tokens is not None  # every default is filled in
        self._max_tokens = self.sampling.max_tokens
        # Without a seed the source starts from the operating system's entropy.
        self.source = random.Random(self.sampling.seed)  # noqa: S311 - sampling, not cryptography

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The prompt and what has been drawn after it."""
        return (*self.prompt_ids, *self.completion_ids)

    def length_after(self, tokens: int) -> int:
        """How many tokens prompt and completion have when so many more have been drawn, or all that may be."""
        return len(self.prompt_ids) + min(len(self.completion_ids) + tokens, self._max_tokens)

    @property
    def position(self) -> int:
        """Where the newest token stands in the row's sequence, from 0."""
        return len(self.prompt_ids) + len(self.completion_ids) - 1

    def begin(self, policy_version: str, decode: Decode) -> None:
        """The row has been admitted; it goes on where it was paused, if it was."""
        if self._begun:
            return
        self._begun = True
        self.policy_version = policy_version
        if self.streamed or self.sampling.stop:
            self._text = GrowingText(decode, self.sampling.stop)

    def accept(self, token: int, logprob: float, end_tokens: frozenset[int]) -> str | None:
        """Take the token that was drawn; gives why the row is finished, or None where it goes on."""
        self.completion_ids.append(token)
        self.logprobs.append(logprob)
        if self.constraint is not None:
            self.constraint.accept(token)
        if token in end_tokens:
            self.ended = True
            return "stop"
        if self._text is not None and self._text.add(token):
            return "stop"
        return "length" if len(self.completion_ids) >= self._max_tokens else None

    def piece(self) -> Piece | None:
        """The text that has come since the last piece, where the row is streamed and there is some."""
        if not self.streamed or self._text is None:
            return None
        text = self._text.take(finished=False)
        return Piece(self, text, len(self.completion_ids)) if text else None

    def end(self, finish_reason: str, decode: Decode, journal: Journal, problem: Problem | None = None) -> Piece:
        """Record the row; gives its last piece, which tells of a problem where there was one."""
        completion, piece = self.completion(finish_reason, decode)
        if self.completion_ids:
            try:
                journal.completion(completion)
            except Exception as error:  # noqa: BLE001 - the client must hear of what could not be recorded
                problem = Problem(500, f"the completion could not be recorded: {type(error).__name__}: {error}")
        return piece if problem is None else Piece(self, piece.text, piece.tokens, None, problem)

    def completion(self, finish_reason: str, decode: Decode) -> tuple[Completion, Piece]:
        """The record of the finished row, and its last piece."""
        if self._text is None:
            text = rest = decode(self.completion_ids[:-1] if self.ended else self.completion_ids)
        else:
            if finish_reason != "stop" or self.ended:
                self._text.finish()
            text, rest = self._text.text, self._text.take(finished=True)
        record = Completion(
            response_id=self.response_id,
            choice=self.choice,
            model=self.model,
            policy_version=self.policy_version,
            prompt_token_ids=self.prompt_ids,
            completion_token_ids=tuple(self.completion_ids),
            completion_logprobs=tuple(self.logprobs),
            text=text,
            finish_reason=finish_reason,
            sampling=self.sampling,
            call_id=self.call_id,
            module=self.module,
            started_at=self.started_at,
            ended_at=time.time_ns(),
        )
        return record, Piece(self, rest, len(self.completion_ids), finish_reason)
