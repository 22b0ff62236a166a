"""OpenAI's fine-tuning jobs, and those of whoever answers `/files` and `/fine_tuning/jobs` as OpenAI does.

The SDK's own retries are off: a request to create a job is repeated only after a look
whether the one before was heard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import openai
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tracetune.errors import InvalidInput, TrainerError
from tracetune.trainers.jobs.service import Job, JobEvent, JobRequest, Unavailable
from tracetune.trainers.jobs.trainer import JobTrainer, Method
from tracetune.types import Upstream

_CLOCKS_APART = 3600.0
_EVENTS_A_LOOK = 50


class OpenAITrainer(JobTrainer):
    """Learns by fine-tuning jobs at OpenAI or a service with the same API.

    Args:
        model: what is trained, as the service calls it.
        base_url: of the service; `OPENAI_BASE_URL` or OpenAI's own by default.
        api_key: `OPENAI_API_KEY` by default.
        method: see `JobTrainer`, as all that follow but these three.
        batch_size: rows an update; the service's choice by default.
        learning_rate_multiplier: likewise.
        beta: how closely "dpo" stays to where it began; likewise.
        request_timeout: seconds that one request may take.

    Example:
        >>> trainer = OpenAITrainer("gpt-4.1-nano-2025-04-14", method="dpo", margin=0.5)  # doctest: +SKIP
        >>> tt.optimize(find, train, reward, trainer, steps=2, rollouts=12)  # doctest: +SKIP
    """

    name = "openai"

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        method: Method = "supervised",
        select: Literal["best", "above", "weighted"] = "best",
        threshold: float = 0.0,
        margin: float = 0.0,
        epochs: int = 3,
        batch_size: int | None = None,
        learning_rate_multiplier: float | None = None,
        beta: float | None = None,
        suffix: str | None = None,
        price_per_million: float | None = None,
        yes: bool = False,
        poll_interval: float = 10.0,
        patience: float = 900.0,
        time_limit: float | None = None,
        request_timeout: float = 120.0,
    ) -> None:
        if beta is not None and method != "dpo":
            raise InvalidInput('beta is of method "dpo" alone; leave it out, or train with that')
        try:
            client = openai.OpenAI(base_url=base_url, api_key=api_key, max_retries=0, timeout=request_timeout)
        except openai.OpenAIError as error:
            raise InvalidInput(
                f"there is no key for the service ({error}); set OPENAI_API_KEY, or pass api_key"
            ) from error
        self._openai = OpenAIService(client)
        super().__init__(
            model,
            upstream=Upstream(str(client.base_url).rstrip("/"), client.api_key),
            method=method,
            select=select,
            threshold=threshold,
            margin=margin,
            epochs=epochs,
            hyperparameters={
                "batch_size": batch_size,
                "learning_rate_multiplier": learning_rate_multiplier,
                "beta": beta,
            },
            suffix=suffix,
            price_per_million=price_per_million,
            yes=yes,
            poll_interval=poll_interval,
            patience=patience,
            time_limit=time_limit,
        )

    def _service(self) -> OpenAIService:
        return self._openai


class OpenAIService:
    """Implements `JobService` with OpenAI's client."""

    def __init__(self, client: openai.OpenAI) -> None:
        self._client = client

    def upload(self, name: str, content: bytes) -> str:
        """Upload a file of rows; gives its id."""
        with told_apart():
            return self._client.files.create(file=(name, content), purpose="fine-tune").id

    def file_ids(self, name: str) -> Sequence[str]:
        """The ids of the uploaded files of that name, the newest first."""
        with told_apart():
            files = self._client.files.list(purpose="fine-tune", order="desc", limit=1000)
            return [file.id for file in files if file.filename == name]

    def create(self, request: JobRequest) -> Job:
        """Create a job."""
        method: Any = {"type": request.method, request.method: {"hyperparameters": request.hyperparameters}}
        with told_apart():
            job = self._client.fine_tuning.jobs.create(
                model=request.model,
                training_file=request.file_id,
                method=method,
                seed=request.seed,
                suffix=openai.omit if request.suffix is None else request.suffix,
                metadata={"tracetune": request.key},
                extra_headers={"Idempotency-Key": request.key},
            )
            return job_of(job)

    def find(self, file_ids: Sequence[str], since: float) -> Job | None:
        """The newest job that was created of one of these files, none of them before a time."""
        with told_apart():
            return first_of(self._client.fine_tuning.jobs.list(limit=100), file_ids, since)

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        with told_apart():
            return job_of(self._client.fine_tuning.jobs.retrieve(job_id))

    def events(self, job_id: str) -> Sequence[JobEvent]:
        """The newest events of a job, oldest first."""
        with told_apart():
            page = self._client.fine_tuning.jobs.list_events(job_id, limit=_EVENTS_A_LOOK)
            return [_event_of(event) for event in reversed(page.data)]


def job_of(job: FineTuningJob) -> Job:
    """A job of the SDK as ours."""
    error = job.error.message if job.error is not None and job.error.message else None
    return Job(job.id, job.status, job.fine_tuned_model, error, job.trained_tokens)


def first_of(jobs: Iterator[FineTuningJob] | Any, file_ids: Sequence[str], since: float) -> Job | None:
    """Of jobs with the newest first, the first that was created of one of these files after a time."""
    for job in jobs:
        if job.training_file in file_ids:
            return job_of(job)
        if job.created_at < since - _CLOCKS_APART:
            return None
    return None


@contextmanager
def told_apart() -> Iterator[None]:
    """Errors of the SDK, told apart into what may be asked again and what may not.

    Raises:
        Unavailable: for rate limits, the service's own errors, time-outs and broken connections.
        TrainerError: for all others, with the service's own message.
    """
    try:
        yield
    except openai.APIStatusError as error:
        if error.status_code in (408, 409, 429) or error.status_code >= 500:
            raise Unavailable(
                f"the service answers {error.status_code}: {_words_of(error)}",
                retry_after=_seconds(error.response.headers.get("retry-after")),
            ) from error
        raise TrainerError(f"the service refuses with {error.status_code}: {_words_of(error)}") from error
    except openai.APIConnectionError as error:  # time-outs are a kind of it
        raise Unavailable(f"the service does not answer ({type(error).__name__}: {error})") from error
    except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
        # The SDK hands out whatever came with status 200, a web page say, and fails where that is used.
        raise TrainerError(
            f"the service's answer is none of a fine-tuning service ({type(error).__name__}: {error}); check base_url"
        ) from error


def _words_of(error: openai.APIStatusError) -> str:
    message = error.body.get("message") if isinstance(error.body, dict) else None
    return str(message or error.message)


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else min(max(float(text), 0.0), 600.0)
    except ValueError:
        return None  # a date: our own pauses will do


def _event_of(event: FineTuningJobEvent) -> JobEvent:
    data = event.data if isinstance(event.data, dict) else {}
    loss = data.get("train_loss")
    return JobEvent(event.id, event.message, float(loss) if isinstance(loss, int | float) else None)
