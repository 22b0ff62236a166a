"""Switching adapters on and off, and what a rollout that was closed may still call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.resources.chat.completions import AsyncCompletions, Completions

import tracetune
from tracetune import adapters, tracer
from tracetune.errors import InvalidInput, RolloutClosed

ARGUMENTS: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "who?"}]}


def test_a_closed_rollout_calls_no_model(client: openai.OpenAI, model_server: Any, store: Path) -> None:
    """After a rollout was closed from outside its next call raises, and no request goes out; scoring may still call."""
    with tracetune.record(store), tracer.rollout(id="r1") as rollout:
        rollout.close("timeout")
        with pytest.raises(RolloutClosed, match="r1 was closed with status timeout"):
            client.chat.completions.create(**ARGUMENTS)
        assert model_server.requests == []
        with tracer.scoring(rollout):
            client.chat.completions.create(**ARGUMENTS)
    assert len(model_server.requests) == 1


def test_nothing_is_sent_or_written_while_nothing_records(
    client: openai.OpenAI, model_server: Any, tmp_path: Path
) -> None:
    """An instrumented client with nothing recording sends the requests it always sent."""
    adapters.instrument("openai")
    try:
        client.chat.completions.create(**ARGUMENTS)
    finally:
        adapters.uninstrument("openai")
    assert model_server.call_ids == model_server.modules == [None]
    assert list(tmp_path.iterdir()) == []


def test_instrumenting_nests_and_is_undone(store: Path) -> None:
    """The SDK's methods are back only when every user of the adapter is done."""
    originals = (Completions.create, AsyncCompletions.create, Completions.parse)
    adapters.instrument("openai")
    with tracetune.record(store):
        patched = Completions.create
    assert Completions.create is patched is not originals[0]
    adapters.uninstrument("openai")
    adapters.uninstrument("openai")  # once too often
    assert (Completions.create, AsyncCompletions.create, Completions.parse) == originals


def test_recording_without_adapters(client: openai.OpenAI, model_server: Any, store: Path) -> None:
    """`record` switches on what it is asked for; when one is not known, nothing is left on."""
    original = Completions.create
    with tracetune.record(store, instrument=()) as recorded:
        client.chat.completions.create(**ARGUMENTS)
        assert recorded.counts.spans == 0
    with pytest.raises(InvalidInput), tracetune.record(store, instrument=["openai", "opnai"]):
        pass
    assert Completions.create is original


def test_unknown_adapters_are_refused() -> None:
    """The refusal says which adapters there are."""
    with pytest.raises(InvalidInput, match="called 'opnai'; there are: openai, langchain, litellm, dspy"):
        adapters.instrument("opnai")
    assert adapters.available() == ["openai", "langchain", "litellm", "dspy"]
