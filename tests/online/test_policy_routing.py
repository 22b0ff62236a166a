"""Programs reach the policy in whatever way their client is configured, with no edit but the decorators."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # prices are not asked of the network

import dspy
import litellm
from langchain_openai import ChatOpenAI
from looped_program import TRAIN, low_words, trainer
from openai import OpenAI

import tracetune as tt

HARD_CODED = "gpt-4o-mini"


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No address and no key but what a run exports."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_API_BASE"):
        monkeypatch.delenv(name, raising=False)
    yield
    tt.uninstrument("litellm")
    tt.uninstrument("dspy")


def by_environment(word: str) -> str:
    """A client that knows nothing of policies: the SDK takes address and key from the environment."""
    reply = OpenAI(max_retries=0).chat.completions.create(
        model=HARD_CODED, messages=[{"role": "user", "content": word}], max_tokens=3
    )
    return reply.choices[0].message.content or ""


def by_base_url(word: str) -> str:
    """A client that is told where to ask."""
    policy = tt.policy()
    reply = OpenAI(base_url=policy.base_url, api_key=policy.api_key, max_retries=0).chat.completions.create(
        model=policy.model, messages=[{"role": "user", "content": word}], max_tokens=3
    )
    return reply.choices[0].message.content or ""


def by_langchain(word: str) -> str:
    """LangChain's chat model, by the environment."""
    return ChatOpenAI(model=HARD_CODED, max_tokens=3, max_retries=0).invoke(word).text


def by_litellm(word: str) -> str:
    """litellm, which puts the provider before the model's name."""
    reply = litellm.completion(f"openai/{HARD_CODED}", [{"role": "user", "content": word}], max_tokens=3)
    return reply.choices[0].message.content or ""


def by_dspy(word: str) -> str:
    """DSPy's language model, asked directly."""
    return str(dspy.LM(f"openai/{HARD_CODED}", max_tokens=3, cache=False, num_retries=0)(word)[0])


ROUTES: dict[str, tuple[Callable[[str], str], bool]] = {
    "the environment": (by_environment, True),
    "a base_url": (by_base_url, False),
    "LangChain's ChatOpenAI": (by_langchain, True),
    "litellm": (by_litellm, True),
    "dspy.LM": (by_dspy, True),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_program_trains_however_its_client_finds_the_policy(tmp_path: Path, route: str):
    """Two steps of a program of two modules: each call is recorded once, with exact tokens, and learned from."""
    ask, exported = ROUTES[route]
    first, second = tt.module("first")(ask), tt.module("second")(ask)

    @tt.program
    def walk(word: str) -> str:
        return second(first(word) or "w0")

    result = tt.optimize(
        walk,
        TRAIN,
        low_words,
        trainer(),
        store=tmp_path / "traces.duckdb",
        steps=2,
        examples_per_step=2,
        rollouts=4,
        models={HARD_CODED: "policy"},
        export_env=exported,
        progress=False,
    )
    assert [report.step for report in result.reports] == [1, 2]
    assert any(report.used for report in result.reports)
    assert "OPENAI_BASE_URL" not in os.environ
    calls = tt.Store(result.store).sql(
        "SELECT module, count(*) AS calls, count(*) FILTER (exact AND on_policy) AS exact,"
        " max(invocation) AS invocation, max(turn) AS turn FROM calls GROUP BY module ORDER BY module"
    )
    assert calls.rows() == [
        {"module": module, "calls": 16, "exact": 16, "invocation": 0, "turn": 0} for module in ("first", "second")
    ]
