"""Fine-tuning jobs through litellm: supervised ones, since litellm leaves a job's method out.

litellm's functions answer with the objects of OpenAI's SDK and raise its errors. They
tell no events, so that of a job under way its status alone is shown.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, Literal

from tracetune.errors import InvalidInput
from tracetune.trainers.jobs.openai import first_of, job_of, told_apart
from tracetune.trainers.jobs.service import Job, JobEvent, JobRequest
from tracetune.trainers.jobs.trainer import JobTrainer, Method
from tracetune.types import Upstream

_OPENAI = "https://api.openai.com/v1"
_LOCAL_PRICES = "LITELLM_LOCAL_MODEL_COST_MAP"


def _without_network() -> Any:
    before = os.environ.get(_LOCAL_PRICES)
    os.environ[_LOCAL_PRICES] = "True"  # litellm would fetch a list of prices that nothing here needs
    try:
        return importlib.import_module("litellm")
    finally:
        if before is None:
            del os.environ[_LOCAL_PRICES]
        else:
            os.environ[_LOCAL_PRICES] = before


litellm = _without_network()


class LiteLLMTrainer(JobTrainer):
    """Learns by supervised fine-tuning jobs that litellm creates.

    The address is OpenAI's, that of a service with the same API, or that of a litellm
    gateway, which may keep the keys of several.

    Args:
        model: what is trained; `openai/` in front of it may be left out.
        base_url: of the service; `OPENAI_BASE_URL` or OpenAI's own by default.
        api_key: `OPENAI_API_KEY` by default.
        method: "supervised" alone.
        select: see `JobTrainer`, as all that follow but these two.
        batch_size: rows an update; the service's choice by default.
        learning_rate_multiplier: likewise.
        request_timeout: seconds that one request may take.

    Example:
        >>> trainer = LiteLLMTrainer("openai/gpt-4.1-nano-2025-04-14", select="above")  # doctest: +SKIP
        >>> tt.optimize(find, train, reward, trainer, steps=2, rollouts=12)  # doctest: +SKIP
    """

    name = "litellm"

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        method: Method = "supervised",
        select: Literal["best", "above", "weighted"] = "best",
        threshold: float = 0.0,
        epochs: int = 3,
        batch_size: int | None = None,
        learning_rate_multiplier: float | None = None,
        suffix: str | None = None,
        price_per_million: float | None = None,
        yes: bool = False,
        poll_interval: float = 10.0,
        patience: float = 900.0,
        time_limit: float | None = None,
        request_timeout: float = 120.0,
    ) -> None:
        if method == "dpo":
            raise InvalidInput('litellm cannot ask for method "dpo"; use the trainer "openai" for that')
        provider, _, name = model.rpartition("/")
        if provider.split("/")[0] in ("azure", "vertex_ai"):
            raise InvalidInput(
                f"models that {provider} has trained answer only once they are deployed; train elsewhere"
            )
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key:
            raise InvalidInput("there is no key for the service; set OPENAI_API_KEY, or pass api_key")
        upstream = Upstream((base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/"), key)
        super().__init__(
            name if provider == "openai" else model,
            upstream=upstream,
            method=method,
            select=select,
            threshold=threshold,
            margin=0.0,
            epochs=epochs,
            hyperparameters={"batch_size": batch_size, "learning_rate_multiplier": learning_rate_multiplier},
            suffix=suffix,
            price_per_million=price_per_million,
            yes=yes,
            poll_interval=poll_interval,
            patience=patience,
            time_limit=time_limit,
        )
        self._litellm = LiteLLMService(upstream, request_timeout)

    def _service(self) -> LiteLLMService:
        return self._litellm


class LiteLLMService:
    """Implements `JobService` with litellm's functions."""

    def __init__(self, upstream: Upstream, request_timeout: float) -> None:
        self._place: dict[str, Any] = {
            "custom_llm_provider": "openai",
            "api_base": upstream.base_url,
            "api_key": upstream.api_key,
            "timeout": request_timeout,
            "max_retries": 0,
        }

    def upload(self, name: str, content: bytes) -> str:
        """Upload a file of rows; gives its id."""
        with told_apart():
            return str(litellm.create_file(file=(name, content), purpose="fine-tune", **self._place).id)

    def file_ids(self, name: str) -> Sequence[str]:
        """The ids of the uploaded files of that name, the newest first."""
        with told_apart():
            files = litellm.file_list(purpose="fine-tune", **self._place)
            return [file.id for file in files if file.filename == name]

    def create(self, request: JobRequest) -> Job:
        """Create a job."""
        with told_apart():
            return job_of(
                litellm.create_fine_tuning_job(
                    model=request.model,
                    training_file=request.file_id,
                    hyperparameters=request.hyperparameters,
                    seed=request.seed,
                    suffix=request.suffix,
                    **self._place,
                )
            )

    def find(self, file_ids: Sequence[str], since: float) -> Job | None:
        """The newest job that was created of one of these files, none of them before a time."""
        with told_apart():
            return first_of(litellm.list_fine_tuning_jobs(limit=100, **self._place), file_ids, since)

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        with told_apart():
            return job_of(litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job_id, **self._place))

    def events(self, job_id: str) -> Sequence[JobEvent]:
        """Nothing: litellm asks for no events."""
        return []
