"""Batches for tests of rows: groups written down in a line, and any groups at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

from tracetune.types import Group, GroupBatch, Member, Sampling

QUESTION = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}]


def answer(text: str, reward: float, advantage: float | None = None, **changes: Any) -> Member:
    """A member that answered a question; without a given advantage, its reward is that."""
    fields: dict[str, Any] = {
        "call_id": f"call-{text}",
        "rollout_id": f"rollout-{text}",
        "module": "answer",
        "messages": QUESTION,
        "prompt_ids": None,
        "completion_ids": None,
        "logprobs": None,
        "text": text,
        "finish_reason": "stop",
        "sampling": Sampling(),
        "policy_version": "run@0",
        "reward": reward,
        "advantage": reward if advantage is None else advantage,
    }
    return Member(**{**fields, **changes})


def said(text: str | None, **beside: Any) -> dict[str, Any]:
    """What the assistant said."""
    return {"role": "assistant", "content": text, **beside}


def batch_of(*groups: Sequence[Member], unit: str = "call") -> GroupBatch:
    """A batch of groups that differ in their example."""
    return GroupBatch(
        [Group({"example_id": f"q{number}", "module": "answer"}, members) for number, members in enumerate(groups)],
        unit=unit,
    )


_numbers = st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0])
_prompts = st.sampled_from(
    [QUESTION, QUESTION[1:], [{"content": "2 + 2?", "role": "user"}], [{"role": "user", "content": "é\n\0"}], []]
)
_tokens = st.one_of(st.none(), st.lists(st.integers(0, 2**31 - 1), max_size=3))


@st.composite
def batches(draw: st.DrawFn) -> GroupBatch:
    """Batches of groups that overlap in prompts and completions, with empty ones among them."""
    return batch_of(
        *draw(
            st.lists(
                st.lists(
                    st.builds(
                        answer,
                        st.sampled_from(["4", "5", "four", "ö", ""]),
                        _numbers,
                        _numbers,
                        messages=_prompts,
                        prompt_ids=_tokens,
                        completion_ids=_tokens,
                        logprobs=st.one_of(st.none(), st.lists(st.floats(-9, 0), max_size=3)),
                        trajectory=st.integers(0, 2),
                        tool_calls=st.sampled_from([(), ({"id": "1", "type": "function", "function": {"name": "f"}},)]),
                    ),
                    max_size=5,
                ),
                max_size=4,
            )
        ),
        unit=draw(st.sampled_from(["call", "trajectory"])),
    )


def rewritten(value: Any) -> Any:
    """An equal value of other containers: tuples for lists, the names of objects in another order."""
    if isinstance(value, Mapping):
        return {name: rewritten(value[name]) for name in reversed(list(value))}
    return tuple(map(rewritten, value)) if isinstance(value, list | tuple) else value
