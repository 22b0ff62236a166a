"""The trainers that learn by jobs do what every trainer does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fine_tuning_server import BASE_MODEL, FineTuningServer, one_certificate

from tracetune.testing import TrainerConformance
from tracetune.trainers.jobs.litellm import LiteLLMTrainer
from tracetune.trainers.jobs.openai import OpenAITrainer


class _OnLoopback(TrainerConformance):
    @pytest.fixture(autouse=True)
    def service(self, tmp_path_factory, monkeypatch) -> Iterator[None]:
        monkeypatch.setenv("SSL_CERT_FILE", one_certificate(tmp_path_factory.mktemp("certificate")))
        with FineTuningServer() as service:
            self.upstream = service.upstream
            yield


class TestOpenAI(_OnLoopback):
    """`openai` passes the suite of trainers that implement `fit`."""

    def make_trainer(self) -> OpenAITrainer:
        """A trainer whose jobs are done at once."""
        return OpenAITrainer(
            BASE_MODEL,
            base_url=self.upstream.base_url,
            api_key=self.upstream.api_key,
            yes=True,
            poll_interval=0.01,
        )


class TestLiteLLM(_OnLoopback):
    """So does `litellm`."""

    def make_trainer(self) -> LiteLLMTrainer:
        """A trainer whose jobs are done at once."""
        return LiteLLMTrainer(
            f"openai/{BASE_MODEL}",
            base_url=self.upstream.base_url,
            api_key=self.upstream.api_key,
            yes=True,
            poll_interval=0.01,
        )
