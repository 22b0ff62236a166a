"""`record_call`: what a client of one's own tells of a call that it has made."""

from __future__ import annotations

from pathlib import Path

import tracetune
from tracetune import tracer
from tracetune.types import Sampling

PROMPT = [{"role": "user", "content": "who?"}]
COLUMNS = (
    "module, turn, messages, completion, finish_reason, response_id, model, provider, sampling, "
    "input_tokens, output_tokens, status, late, duration_ms"
)


def test_all_that_can_be_said(tmp_path: Path) -> None:
    """A call has what was said of it, in the module that said it; a failed one has what came before the failure."""
    path = tmp_path / "traces.duckdb"
    search = {"id": "t1", "type": "function", "function": {"name": "search", "arguments": "{}"}}

    @tracer.program
    def ask() -> None:
        tracer.record_call(
            messages=PROMPT,
            completion="ann",
            response_id="r1",
            model="tiny",
            finish_reason="stop",
            started_at=1_700_000_000_000_000_000,
            ended_at=1_700_000_000_002_000_000,
            sampling=Sampling(temperature=0.5),
            input_tokens=7,
            output_tokens=1,
            provider="mine",
        )
        tracer.record_call(messages=PROMPT, completion={"role": "assistant", "content": None, "tool_calls": [search]})
        tracer.record_call(messages=PROMPT, completion="an", error=TimeoutError("lost"))
        tracer.record_call(messages=PROMPT, completion="", error=TimeoutError("lost"))

    with tracetune.record(path, instrument=[]), tracer.rollout() as rollout:
        ask()
    assert [(call.completion, call.status) for call in rollout.calls] == [
        ("ann", "ok"),
        ("", "ok"),
        ("an", "error"),
        ("", "error"),
    ]
    first, tools, *failed = tracetune.Store(path).sql(f"SELECT {COLUMNS} FROM calls ORDER BY turn").rows()
    assert first == {
        "module": "ask",
        "turn": 0,
        "messages": '[{"role":"user","content":"who?"}]',
        "completion": "ann",
        "finish_reason": "stop",
        "response_id": "r1",
        "model": "tiny",
        "provider": "mine",
        "sampling": '{"temperature":0.5}',
        "input_tokens": 7,
        "output_tokens": 1,
        "status": "ok",
        "late": False,
        "duration_ms": 2.0,
    }
    assert (tools["turn"], tools["completion"], tools["status"]) == (1, None, "ok")
    assert [(call["turn"], call["completion"], call["status"]) for call in failed] == [
        (2, "an", "error"),
        (3, None, "error"),
    ]


def test_a_call_made_before_its_rollout_was_closed(tmp_path: Path) -> None:
    """It has been made, so it is recorded, as late; nothing is raised into the client."""
    path = tmp_path / "traces.duckdb"
    with tracetune.record(path, instrument=[]), tracer.rollout() as rollout:
        rollout.close("timeout")
        assert tracer.record_call(messages=PROMPT, completion="ann") is not None
    assert tracetune.Store(path).sql("SELECT completion, late FROM calls").rows() == [
        {"completion": "ann", "late": True}
    ]
