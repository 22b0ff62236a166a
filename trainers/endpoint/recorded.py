"""What a server says of its tokens: asked for, written down, and kept from a client that did not ask.

The server is vLLM, or answers as it does: `return_token_ids` has it give the ids of prompt
and completion, and its log-probabilities are those of the distribution that was sampled
from where it runs with `--logprobs-mode processed_logprobs`. A choice is in the journal
before its client sees its end.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from tracetune.trainers.endpoint.door import event
from tracetune.trainers.endpoint.overrides import asked_of, in_force, with_defaults, with_sampling
from tracetune.trainers.endpoint.problems import Problem
from tracetune.types import Completion, Journal, Sampling

Json = dict[str, Any]

# Why the sampling of tokens ended, where the server says what a client makes of it.
_SAMPLING_ENDED = {"tool_calls": "stop", "function_call": "stop", "abort": "cancelled"}

# Where a request is silent, vLLM samples as the model's generation_config.json says; so it is never silent.
_WHOLE_DISTRIBUTION: Mapping[str, Any] = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
# Each of these bends or cuts the distribution, so that what is left is not the policy's own.
_BENDING: Mapping[str, tuple[Any, ...]] = {
    **{name: (value,) for name, value in _WHOLE_DISTRIBUTION.items()},
    "logit_bias": ({},),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "structured_outputs": (),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
}


@dataclass(frozen=True, slots=True)
class Heading:
    """What the records of one request have in common.

    Attributes:
        model: the model's name, as the client asked for it.
        policy_version: of the policy when the request was sent.
        call_id: the header of that name.
        module: likewise.
        started_at: nanoseconds since the epoch.
    """

    model: str
    policy_version: str
    call_id: str | None
    module: str | None
    started_at: int = field(default_factory=time.time_ns)


class RecordedRequest:
    """One request to a server that returns token ids.

    Attributes:
        body: what is sent to the server.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        upstream_model: str,
        override: Sampling | None,
        heading: Heading,
        *,
        journal: Journal,
        on_unknown: Callable[[], None],
    ) -> None:
        """Prepare the request.

        Args:
            values: the body that the client sent.
            upstream_model: what the server calls the policy.
            override: goes over the client's sampling.
            heading: what all records of it say.
            journal: gets them.
            on_unknown: called when the server does not say what its tokens are.

        Raises:
            Problem: if the client's sampling makes no sense.
        """
        self._values = values
        self._heading = heading
        self._journal, self._on_unknown = journal, on_unknown
        self._sampling = in_force(with_defaults(asked_of(values)), override)
        self._is_chat = "messages" in values
        self._choices: dict[int, _Choice] = {}
        self._prompt_ids: Sequence[int] | None = None
        self.body = self._body(upstream_model, {} if override is None else _WHOLE_DISTRIBUTION)
        self._is_whole = all(
            self.body.get(name) is None or self.body[name] in neutral for name, neutral in _BENDING.items()
        )

    async def answer(self, answer: httpx.Response) -> AsyncGenerator[bytes]:
        """The client's answer, from the server's: each choice is written before its end is given.

        Raises:
            Problem: if a choice could not be written.
        """
        if not answer.is_success:
            async for chunk in answer.aiter_raw():
                yield chunk
        elif answer.headers.get("content-type", "").startswith("text/event-stream"):
            try:
                async for block in _events(answer):
                    yield self._passed_event(block)
            finally:
                self._cancel_unfinished()
        else:
            yield self._passed_body(await answer.aread())

    def _body(self, upstream_model: str, over: Mapping[str, Any]) -> Json:
        body = {**_WHOLE_DISTRIBUTION, **_given(self._values), **over, "model": upstream_model}
        body = with_sampling(body, self._sampling)
        body["top_k"] = -1 if self._sampling.top_k is None else self._sampling.top_k
        body["return_token_ids"] = True
        # Plain completions count the alternatives: with none, the sampled token's own is still there.
        body["logprobs"] = True if self._is_chat else self._values.get("logprobs") or 0
        return body

    def _passed_body(self, content: bytes) -> bytes:
        try:
            answer = orjson.loads(content)
            choices = answer["choices"]
        except (orjson.JSONDecodeError, TypeError, KeyError):
            self._on_unknown()
            return content
        self._prompt_ids = answer.get("prompt_token_ids")
        for choice in choices:
            self._take(choice, answer.get("id") or "")
        return orjson.dumps(self._without_extras(answer))

    def _passed_event(self, block: bytes) -> bytes:
        data = block.removeprefix(b"data:").strip()
        if not block.startswith(b"data:") or data == b"[DONE]":
            return block + b"\n\n"
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return block + b"\n\n"
        if not isinstance(chunk, dict) or "choices" not in chunk:
            return block + b"\n\n"
        if chunk.get("prompt_token_ids") is not None:
            self._prompt_ids = chunk["prompt_token_ids"]
        for choice in chunk["choices"]:
            self._take(choice, chunk.get("id") or "")
        return event(self._without_extras(chunk))

    def _take(self, part: Json, response_id: str) -> None:
        """Add a part of a choice, be it all of it, to what is known of it; write it down if it is the last."""
        choice = self._choices.setdefault(part.get("index", 0), _Choice(response_id))
        choice.add(part)
        if part.get("finish_reason") is not None and not choice.is_written:
            self._record(part.get("index", 0), choice, part["finish_reason"])

    def _cancel_unfinished(self) -> None:
        for index, choice in self._choices.items():
            if not choice.is_written and choice.token_ids:
                self._record(index, choice, "cancelled")

    def _record(self, index: int, choice: _Choice, finish_reason: str) -> None:
        choice.is_written = True
        prompt_ids = choice.prompt_ids if choice.prompt_ids is not None else self._prompt_ids
        if prompt_ids is None or choice.token_ids is None:
            self._on_unknown()
            return
        record = Completion(
            response_id=choice.response_id,
            choice=index,
            model=self._heading.model,
            policy_version=self._heading.policy_version,
            prompt_token_ids=tuple(prompt_ids),
            completion_token_ids=tuple(choice.token_ids),
            completion_logprobs=choice.known_logprobs() if self._is_whole else None,
            text="".join(choice.texts),
            finish_reason=_SAMPLING_ENDED.get(finish_reason, finish_reason),
            sampling=self._sampling,
            call_id=self._heading.call_id,
            module=self._heading.module,
            started_at=self._heading.started_at,
            ended_at=time.time_ns(),
        )
        try:
            self._journal.completion(record)
        except Exception as error:
            raise Problem(500, f"the completion could not be recorded: {type(error).__name__}: {error}") from error

    def _without_extras(self, answer: Json) -> Json:
        """What the client asked for, under the name that it asked for."""
        answer["model"] = self._heading.model
        asked_ids = bool(self._values.get("return_token_ids"))
        asked_logprobs = self._values.get("logprobs") not in ((None, False) if self._is_chat else (None,))
        if not asked_ids:
            answer.pop("prompt_token_ids", None)
        for choice in answer["choices"]:
            if not asked_ids:
                choice.pop("prompt_token_ids", None)
                choice.pop("token_ids", None)
            if not asked_logprobs:
                choice["logprobs"] = None
        return answer


@dataclass(slots=True)
class _Choice:
    """What has come of one choice so far."""

    response_id: str
    prompt_ids: Sequence[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    is_written: bool = False

    def add(self, part: Json) -> None:
        """One part: of a chat or a plain completion, whole or a chunk."""
        said = part.get("message") or part.get("delta") or {}
        self.texts.append(part.get("text") or said.get("content") or "")
        if part.get("prompt_token_ids") is not None:
            self.prompt_ids = part["prompt_token_ids"]
        if part.get("token_ids") is not None:
            self.token_ids = [*(self.token_ids or ()), *part["token_ids"]]
        logprobs = part.get("logprobs") or {}
        if logprobs.get("content") is not None:
            self.logprobs += [token["logprob"] for token in logprobs["content"]]
        elif logprobs.get("token_logprobs") is not None:
            self.logprobs += logprobs["token_logprobs"]

    def known_logprobs(self) -> Sequence[float] | None:
        """One number for each token, or None where they are not that."""
        numbers = [number for number in self.logprobs if number is not None and math.isfinite(number)]
        return tuple(numbers) if len(numbers) == len(self.logprobs) == len(self.token_ids or ()) else None


async def _events(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The server-sent events of a stream, without the empty lines between them."""
    waiting = b""
    async for chunk in answer.aiter_bytes():
        # JSON writes line ends inside a text as escapes: those that are left are the stream's own.
        waiting += chunk.replace(b"\r", b"")
        *blocks, waiting = waiting.split(b"\n\n")
        for block in blocks:
            yield block
    if waiting:
        yield waiting


def _given(values: Mapping[str, Any]) -> Json:
    return {name: value for name, value in values.items() if value is not None}
