"""The service: the one file that knows the `tinker` client.

Calls of the client give futures at once. What must be in order (a gradient, then an
update, then a copy of the weights to sample from) is ordered by the numbers that the
client gives its requests, and a request that it sends again has its number again, so the
service makes no update twice. Whatever goes wrong becomes a `TrainerError` here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinker
from tinker import types

from tracetune.errors import TrainerError
from tracetune.types import Sampling

ServiceFactory = Callable[[], Any]
"""Gives an object with the methods of `tinker.ServiceClient`."""

# How long the end of a session is waited for: a service that is gone is asked again for minutes.
_CLOSE_SECONDS = 10.0

# AdamW as PyTorch has it, and so the local trainer: services have other defaults.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def tinker_service(base_url: str | None, api_key: str | None) -> ServiceFactory:
    """Makes clients of the service at an address.

    Args:
        base_url: None takes `TINKER_BASE_URL`, or Thinking Machines' own.
        api_key: None takes `TINKER_API_KEY`, or what `tinker auth login` has stored.
    """
    return lambda: tinker.ServiceClient(base_url=base_url, api_key=api_key)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One completion as the service learns from it; per-token values are the completion's.

    Attributes:
        logprobs: of the completion's tokens when they were sampled, nats.
        advantages: what the loss of each token is multiplied by.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    logprobs: Sequence[float]
    advantages: Sequence[float]


@dataclass(frozen=True, slots=True)
class Learned:
    """What the service said of an update.

    Attributes:
        logprobs: of each lesson's completion tokens, before the update.
        grad_norm: before clipping; 0 where the service does not tell.
    """

    logprobs: Sequence[np.ndarray]
    grad_norm: float


class Sampler:
    """Weights that can be sampled from; they stay as they are."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def sample(self, prompt_ids: Sequence[int], n: int, sampling: Sampling) -> Future[types.SampleResponse]:
        """Ask for n completions of a prompt, without waiting for them."""
        params = types.SamplingParams(
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop=list(sampling.stop) or None,  # an empty list would have even the end token ignored
            temperature=1.0 if sampling.temperature is None else sampling.temperature,
            top_k=-1 if sampling.top_k is None else sampling.top_k,
            top_p=1.0 if sampling.top_p is None else sampling.top_p,
        )
        prompt = types.ModelInput.from_ints(list(prompt_ids))
        return _standard(self._client.sample(prompt=prompt, num_samples=n, sampling_params=params))


class TrainingRun:
    """One adapter that learns at the service.

    Args:
        service: a client of the service.
        client: the client of the adapter, or a future of it.
        timeout: seconds to wait for any one answer.
    """

    def __init__(self, service: Any, client: Any, timeout: float) -> None:
        self._service, self._timeout = service, timeout
        self._base: Any = None
        try:
            self._client = self._settled(client, "make the adapter")
        except BaseException:
            self.close("errored")
            raise

    @classmethod
    def new(cls, factory: ServiceFactory, model: str, *, rank: int, seed: int, timeout: float) -> TrainingRun:
        """A new adapter on a base model."""
        with _Explained("open a session"):
            service = factory()
            with _closed_on_error(service):
                client = service.create_lora_training_client(base_model=model, rank=rank, seed=seed)
        return cls(service, client, timeout)

    @classmethod
    def resumed(cls, factory: ServiceFactory, state: str, *, timeout: float) -> TrainingRun:
        """An adapter as it was when its state was saved, its optimiser's moments included."""
        with _Explained("open a session"):
            service = factory()
            with _closed_on_error(service):
                client = service.create_training_client_from_state_with_optimizer(state)
        return cls(service, client, timeout)

    def close(self, status: str = "success") -> None:
        """End the session, its heartbeats and its connections; saved states stay.

        Args:
            status: "success" or "errored", as the service shows the session's end.
        """
        _close(self._service, status)

    def tokenizer(self) -> Any:
        """The base model's tokenizer, from the Hugging Face hub."""
        with _Explained("name a tokenizer that can be loaded"):
            return self._client.get_tokenizer()

    def sampler(self) -> Sampler:
        """The weights as they are now; kept by the service for as long as the session lasts."""
        with _Explained("copy the weights for sampling"):
            client = self._client.save_weights_and_get_sampling_client()
        return Sampler(self._settled(client, "copy the weights for sampling"))

    def save(self, name: str, ttl_seconds: int | None) -> str:
        """Have the service keep weights and optimiser; gives the path that they can be loaded from."""
        path: str = self._answer(lambda: self._client.save_state(name, ttl_seconds=ttl_seconds), "save its state").path
        return path

    def present_logprobs(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
        """Log-probabilities of completions after their prompts, under the weights as they are."""
        data = []
        for prompt_ids, completion_ids in sequences:
            # The loss is nothing: it is the log-probabilities that are asked for.
            weights = np.zeros(len(completion_ids), np.float32)
            data.append(_datum(prompt_ids, completion_ids, weights=weights))
        output = self._answer(lambda: self._client.forward(data, "cross_entropy"), "compute log-probabilities")
        return _completion_logprobs(output, [completion_ids for _, completion_ids in sequences])

    def base_logprobs(self, model: str, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[np.ndarray]:
        """Log-probabilities of completions after their prompts, under the base model."""
        if self._base is None:
            with _Explained("sample from the base model"):
                client = self._service.create_sampling_client(base_model=model)
            self._base = self._settled(client, "sample from the base model")
        # Several rollouts often say the same: each sequence is paid for once.
        asked = {}
        with _Explained("compute log-probabilities of the base model"):
            for prompt_ids, completion_ids in sequences:
                tokens = (*prompt_ids, *completion_ids)
                if tokens not in asked:
                    asked[tokens] = self._base.compute_logprobs(types.ModelInput.from_ints(list(tokens)))
        answers = {
            tokens: self._settled(future, "compute log-probabilities of the base model")
            for tokens, future in asked.items()
        }
        given = []
        for prompt_ids, completion_ids in sequences:
            logprobs = (answers[*prompt_ids, *completion_ids] or [])[len(prompt_ids) :]
            if len(logprobs) != len(completion_ids) or None in logprobs:
                raise TrainerError(
                    "the service gave no log-probabilities of the base model; not every service can: "
                    "set kl=0 and importance=None"
                )
            given.append(np.array(logprobs, np.float64))
        return given

    def learn(
        self,
        lessons: Sequence[Lesson],
        *,
        loss: str,
        thresholds: tuple[float, float],
        learning_rate: float,
        max_grad_norm: float,
    ) -> Learned:
        """One update: the gradient of the loss, summed over all tokens, and a step of AdamW.

        Both are asked for at once, so that the service need not wait for us in between.
        """
        data = [
            _datum(
                lesson.prompt_ids,
                lesson.completion_ids,
                logprobs=np.array(lesson.logprobs, np.float32),
                advantages=np.array(lesson.advantages, np.float32),
            )
            for lesson in lessons
        ]
        low, high = thresholds
        config = None if loss == "importance_sampling" else {"clip_low_threshold": low, "clip_high_threshold": high}
        update = types.AdamParams(
            learning_rate=learning_rate,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            eps=_EPSILON,
            weight_decay=0.0,
            grad_clip_norm=max_grad_norm,
        )
        with _Explained("learn from a batch"):
            gradient = self._client.forward_backward(data, loss, config)
            updated = self._client.optim_step(update)
        output = self._settled(gradient, "compute a gradient")
        metrics = self._settled(updated, "update the weights").metrics or {}
        logprobs = _completion_logprobs(output, [lesson.completion_ids for lesson in lessons])
        return Learned(logprobs, _grad_norm(metrics))

    def _answer(self, ask: Callable[[], Any], what: str) -> Any:
        with _Explained(what):
            future = ask()
        return self._settled(future, what)

    def _settled(self, value: Any, what: str) -> Any:
        """What a future comes to; values that are none are themselves, since clients differ in what they wait for."""
        if not hasattr(value, "result"):
            return value
        with _Explained(what, self._timeout):
            try:
                return value.result(self._timeout)
            except TimeoutError:
                _standard(value).cancel()  # or the client would ask for it until the process ends
                raise


def reason_of(error: BaseException) -> str:
    """What an error of the client says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'it does not say why'}"


def is_of_the_request(error: BaseException) -> bool:
    """Whether the service blames what it was asked, so that asking again will not help."""
    if isinstance(error, tinker.RequestFailedError):
        return error.category == types.RequestErrorCategory.User
    return isinstance(error, tinker.APIStatusError) and error.status_code in (400, 413, 422)


class _Explained:
    """Turns errors of the client into a `TrainerError` that says what the service was asked to do."""

    def __init__(self, what: str, timeout: float | None = None) -> None:
        self._what, self._timeout = what, timeout

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError) and self._timeout is not None:
            raise TrainerError(
                f"the tinker service did not {self._what} within {self._timeout:g} s; see whether it is up, or give "
                "the trainer a longer timeout"
            ) from error
        if isinstance(error, Exception):
            raise TrainerError(
                f"the tinker service could not {self._what} ({reason_of(error)}); check its address, its key and "
                "its status, then resume"
            ) from error


@contextmanager
def _closed_on_error(service: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _close(service, "errored")
        raise


def _close(service: Any, status: str) -> None:
    """Close a client of the service, if it is one that can be closed.

    Errors are dropped: the client releases its own resources all the same, and a service
    ends a session by itself when the heartbeats stop.
    """
    close = getattr(service, "close", None)
    if close is None:
        return
    with suppress(Exception):
        closed = close(status)
        if not hasattr(closed, "result"):
            return
        future = _standard(closed)
        try:
            future.result(_CLOSE_SECONDS)
        finally:
            # The client stops asking, and goes on to release what it holds.
            future.cancel()


def _standard(future: Any) -> Future[Any]:
    """The standard library's future in one of the client's."""
    inner: Future[Any] = future.future() if hasattr(future, "future") else future
    return inner


def _datum(prompt_ids: Sequence[int], completion_ids: Sequence[int], **per_token: np.ndarray) -> types.Datum:
    """A sequence with what the loss needs, which is 0 where a prompt token is predicted."""
    tokens = [*prompt_ids, *completion_ids]
    inputs = {
        name: types.TensorData.from_numpy(np.concatenate([np.zeros(len(prompt_ids) - 1, values.dtype), values]))
        for name, values in per_token.items()
    }
    inputs["target_tokens"] = types.TensorData.from_numpy(np.array(tokens[1:], np.int64))
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def _completion_logprobs(output: types.ForwardBackwardOutput, completions: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The log-probabilities in an output, those of prompt tokens left out."""
    given = []
    outputs = output.loss_fn_outputs
    for values, completion_ids in zip(outputs, completions, strict=len(outputs) == len(completions)):
        logprobs = np.array(values["logprobs"].data, np.float64) if "logprobs" in values else np.zeros(0)
        given.append(logprobs[-len(completion_ids) :])
    if [len(logprobs) for logprobs in given] != [len(completion_ids) for completion_ids in completions]:
        raise TrainerError(
            "the tinker service gave no log-probability for some tokens it was sent; it is not one that this works with"
        )
    return given


def _grad_norm(metrics: Mapping[str, float]) -> float:
    """The gradient's norm, under whatever name the service has for it."""
    found = (value for name, value in metrics.items() if "grad_norm" in name or "grad_l2" in name)
    return next(found, 0.0)
