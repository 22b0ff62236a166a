"""Asking a model of any provider for JSON in a certain form, until it comes or there is no use.

The only file that knows litellm. Every request is a span of its own, recorded as a score
and never grouped, with whatever of it other instrumentations see inside.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any, TypeVar

from tracetune import tracer
from tracetune.errors import InvalidInput, JudgeError, MissingDependency
from tracetune.rewards.answers import AnswerCache
from tracetune.tracer import Choice, LMCall

T = TypeVar("T")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
_FENCED = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
_NO_PART_OF_THE_QUESTION = ("api_key", "timeout")
_importing = threading.Lock()


class WrongForm(ValueError):
    """An answer that is not in the form that was asked for; its text says to the model what is wrong."""


class Asker:
    """One model, and how it is asked.

    Args:
        model: as litellm names it: "openai/gpt-4o-mini", "anthropic/claude-…".
        cache: the file to keep answers in; None keeps none.
        attempts: how often a question is put before it is given up.
        timeout: seconds that one request may take.
        max_concurrency: how many requests are under way at once.
        settings: what else `litellm.completion` takes: `api_base`, `temperature` and so on.

    Raises:
        MissingDependency: if litellm is not installed.
        InvalidInput: if a number makes no sense, or the cache cannot be used.
    """

    def __init__(
        self,
        model: str,
        *,
        cache: str | os.PathLike[str] | None,
        attempts: int,
        timeout: float,
        max_concurrency: int,
        settings: Mapping[str, Any],
    ) -> None:
        if find_spec("litellm") is None:
            raise MissingDependency(
                'a model that judges needs litellm; install it with pip install "tracetune[litellm]"'
            )
        for name, number in (("attempts", attempts), ("timeout", timeout), ("max_concurrency", max_concurrency)):
            if number <= 0:
                raise InvalidInput(f"{name} must be more than 0, not {number}")
        if taken := {"messages", "n", "stream", "num_retries", "max_retries"} & settings.keys():
            raise InvalidInput(f"a judge sets {', '.join(sorted(taken))} itself; leave it out")
        self._model = model
        self._cache = AnswerCache(cache) if cache is not None else None
        self._attempts = attempts
        self._timeout = timeout
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._settings = dict(settings)

    def ask(self, messages: Sequence[Mapping[str, str]], read: Callable[[Any], T], *, sample: int = 0) -> T:
        """What `read` makes of the JSON that the model answers.

        Args:
            messages: the question, which asks for JSON.
            read: gives what a JSON value means, or raises `WrongForm`.
            sample: which of several answers to the same question this is.

        Raises:
            JudgeError: if no attempt brought an answer that can be read.
        """

        def ask() -> str:
            return self._answer(messages, read)

        if self._cache is None:
            return _read(ask(), read)
        question = {
            "model": self._model,
            "messages": messages,
            "sample": sample,
            "settings": {name: value for name, value in self._settings.items() if name not in _NO_PART_OF_THE_QUESTION},
        }
        return _read(self._cache.answer(question, ask), read)

    def _answer(self, messages: Sequence[Mapping[str, str]], read: Callable[[Any], object]) -> str:
        """An answer that can be read, after as many attempts as it takes."""
        conversation = list(messages)
        for attempt in range(1, self._attempts + 1):
            is_last = attempt == self._attempts
            try:
                text = self._request(conversation)
                _read(text, read)
            except WrongForm as error:
                if is_last:
                    raise JudgeError(
                        f"{self._model} gave no answer in the asked form in {attempts_of(attempt)}, at last: {error} "
                        "Use a model that can write JSON."
                    ) from error
                conversation = [*messages, *_corrected(text, error)]
            except Exception as error:
                if is_last or not _may_pass(error):
                    raise JudgeError(
                        f"{self._model} could not be asked, after {attempts_of(attempt)} "
                        f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); see its name, key and limits"
                    ) from error
                time.sleep(_pause(error, attempt))
            else:
                return text
        raise AssertionError("the last attempt gives an answer or raises")

    def _request(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of one response."""
        litellm = _litellm()
        with self._slots, tracer.scoring():
            call = LMCall.begin(messages, model=self._model, sampling=self._settings, provider=self._provider())
            if call is None:
                return _text(self._complete(litellm, messages))
            try:
                with call.entered():
                    response = self._complete(litellm, messages)
            except BaseException as error:
                call.fail(error)
                raise
            usage = getattr(response, "usage", None)
            call.end(
                response_id=response.id,
                response_model=response.model,
                choices=[Choice(choice.message.content or "", choice.finish_reason) for choice in response.choices],
                input_tokens=getattr(usage, "prompt_tokens", None),
                output_tokens=getattr(usage, "completion_tokens", None),
            )
            return _text(response)

    def _complete(self, litellm: Any, messages: Sequence[Mapping[str, str]]) -> Any:
        # Retries are ours alone: those of litellm and of the SDK below would multiply them.
        return litellm.completion(
            model=self._model,
            messages=[dict(message) for message in messages],
            timeout=self._timeout,
            num_retries=0,
            max_retries=0,
            **self._settings,
        )

    def _provider(self) -> str:
        provider, named, _ = self._model.partition("/")
        return provider if named else "litellm"


def attempts_of(number: int) -> str:
    """The number of attempts in words.

    Example:
        >>> attempts_of(1), attempts_of(4)
        ('1 attempt', '4 attempts')
    """
    return f"{number} attempt{'' if number == 1 else 's'}"


def _litellm() -> Any:
    """litellm, imported without its look at the network."""
    with _importing:
        name = "LITELLM_LOCAL_MODEL_COST_MAP"
        before = os.environ.get(name)
        os.environ[name] = "True"  # otherwise importing it fetches a list of prices
        try:
            litellm: Any = importlib.import_module("litellm")
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
    litellm.suppress_debug_info = True  # it prints an advertisement beside each error
    return litellm


def _read(text: str, read: Callable[[Any], T]) -> T:
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except ValueError as error:
        raise WrongForm(f"That is not JSON: {error}.") from error
    return read(value)


def _corrected(text: str, error: WrongForm) -> list[dict[str, str]]:
    """What is added to a question that was answered in another form; an empty answer cannot be sent back."""
    if not text:
        return []
    again = f"{error} Answer again, with the JSON object alone."
    return [{"role": "assistant", "content": text}, {"role": "user", "content": again}]


def _text(response: Any) -> str:
    if not response.choices:
        return ""
    return str(response.choices[0].message.content or "")


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: limits, timeouts, servers in trouble."""
    status = getattr(error, "status_code", None)
    return isinstance(status, int) and (status in (408, 409, 429) or status >= 500)


def _pause(error: BaseException, attempt: int) -> float:
    """Seconds to wait: what the server asks for, or twice as long each time, a little at random."""
    backoff: float = _FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)  # noqa: S311  no secret
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    return min(_LONGEST_PAUSE, max(backoff, _seconds(headers.get("retry-after"))))


def _seconds(retry_after: str | None) -> float:
    """What a Retry-After header says, in seconds or as a date; 0 where it says nothing that can be read."""
    if retry_after is None:
        return 0.0
    try:
        return float(retry_after)
    except ValueError:
        pass
    try:
        return float(parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
