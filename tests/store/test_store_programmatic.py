"""Rollouts added by a caller come out as they went in."""

from __future__ import annotations

import json

from tracetune.grouping import CallRow, RolloutRow, Store
from tracetune.types import Sampling


def test_a_rollout_that_is_added_has_every_field_it_was_given(tmp_path):
    """What the views show of an added rollout is what it was made of."""
    store = Store(tmp_path / "traces.duckdb")
    call = CallRow(
        module="hop",
        key="left",
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "who?"}],
        completion="carl",
        finish_reason="stop",
        response_id="response-1",
        model="policy",
        sampling=Sampling(temperature=0.5, seed=7, stop=("\n",)),
        prompt_token_ids=[1, 2],
        completion_token_ids=[3],
        completion_logprobs=[-0.125],
        policy_version="try-1@1",
        reward=0.5,
    )
    rollout = RolloutRow(
        id="r1",
        run="try-1",
        split="val",
        step=4,
        index=2,
        program="find",
        example_id="q1",
        input={"claim": "c"},
        output=["a"],
        status="format_error",
        error_type="tracetune.errors.FormatError",
        reward=0.25,
        policy_version="try-1@0",
        calls=[call],
    )
    assert store.add_rollouts([rollout]) == ["r1"]
    (row,) = store.sql("SELECT * EXCLUDE (started_at, duration_ms, trace_id) FROM rollouts").rows()
    assert row == {
        **rollout.model_dump(exclude={"id", "index", "input", "output", "calls"}),
        "rollout_id": "r1",
        "superseded": False,
        "rollout_index": 2,
        "n_calls": 1,
        "input": '{"claim":"c"}',
        "output": '["a"]',
    }
    (row,) = store.sql("SELECT * EXCLUDE (call_id, started_at, duration_ms) FROM calls").rows()
    assert row == {
        **call.model_dump(),
        "rollout_id": "r1",
        "run": "try-1",
        "split": "val",
        "step": 4,
        "example_id": "q1",
        "invocation": 0,
        "turn": 0,
        "messages": '[{"role":"system","content":"be brief"},{"role":"user","content":"who?"}]',
        "sampling": '{"temperature":0.5,"top_p":null,"top_k":null,"max_tokens":null,'
        '"seed":7,"stop":["\\n"],"constrained":false}',
        "exact": True,
        "on_policy": True,
        "cached": False,
        "unordered": False,
        "truncated": False,
        "redacted": False,
        "late": False,
        "provider": None,
        "input_tokens": None,
        "output_tokens": None,
    }


def test_calls_without_a_place_follow_the_order_of_the_list(tmp_path):
    """Each call of a module is its next invocation; one with an invocation given again is its next turn."""
    store = Store(tmp_path / "traces.duckdb")
    calls = [{"module": "hop"}, {"module": "answer"}, {"module": "hop"}, {"module": "hop", "invocation": 1}]
    store.add_rollouts([{"example_id": "q1", "status": status, "calls": calls} for status in ("ok", "interrupted")])
    places = store.sql("SELECT DISTINCT module, invocation, turn FROM calls ORDER BY ALL").rows()
    assert [tuple(row.values()) for row in places] == [
        ("answer", 0, 0),
        ("hop", 0, 0),
        ("hop", 1, 0),
        ("hop", 1, 1),
    ]
    assert store.sql("SELECT status, n_calls FROM rollouts ORDER BY ALL").rows() == [
        {"status": "interrupted", "n_calls": 4},
        {"status": "ok", "n_calls": 4},
    ]


def test_messages_with_more_than_text_come_back_as_they_were(tmp_path):
    """Tool calls and contents in parts survive the way through the conventions."""
    store = Store(tmp_path / "traces.duckdb")
    messages = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "found"},
    ]
    store.add_rollouts([{"example_id": "q1", "calls": [{"module": "hop", "messages": messages}]}])
    (row,) = store.sql("SELECT messages FROM calls").rows()
    assert json.loads(row["messages"]) == messages
