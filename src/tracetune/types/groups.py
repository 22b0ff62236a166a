"""Groups as trainers receive them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracetune.types.completions import Sampling


@dataclass(frozen=True, slots=True)
class Member:
    """One call of a group, with all that a trainer needs to learn from it.

    Attributes:
        messages: the prompt in OpenAI's chat shape.
        prompt_ids: the exact prompt tokens, or None where only the text is known.
        completion_ids: the exact completion tokens, likewise.
        logprobs: one natural logarithm for each completion token, under the policy that
            sampled it; None where it is not known.
        text: the completion's text.
        on_policy: False where `logprobs` are those of a truncated or greedy
            distribution, so that a trainer must compute its own.
        trajectory: the place of its rollout's unit in the group when whole rollouts are
            members; members that share it are one unit. Its own slot otherwise.
        teacher: the name of the teacher that sampled it; None where the policy did, of
            whatever version.
        tool_calls: the tools that the completion calls, in OpenAI's chat shape; `text` is
            what it says beside them.
        is_redacted: whether redaction changed its messages or its text: its tokens, where
            they are known, are as they were, but nobody should learn from the text.
    """

    call_id: str
    rollout_id: str
    module: str
    messages: Sequence[Mapping[str, Any]]
    prompt_ids: Sequence[int] | None
    completion_ids: Sequence[int] | None
    logprobs: Sequence[float] | None
    text: str
    finish_reason: str | None
    sampling: Sampling
    policy_version: str | None
    reward: float
    advantage: float
    on_policy: bool = True
    trajectory: int = 0
    teacher: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    is_redacted: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether its prompt and completion are known token by token."""
        return self.prompt_ids is not None and self.completion_ids is not None


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that are compared with each other; `key` names the columns they share."""

    key: Mapping[str, Any]
    members: Sequence[Member]

    @property
    def id(self) -> str:
        """The key as text: `try-1/train/3/q17/hop//0/0`."""
        return "/".join("" if value is None else str(value) for value in self.key.values())


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A call, group or rollout that is not in the batch, and why.

    Attributes:
        kind: "call", "group" or "rollout".
        reason: "unscored", "missing", "ragged", "not_selected", "constant", "score_call",
            "other_module", "late", "cached" and so on; documented in `docs/grouping.md`.
    """

    kind: str
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """What one training step learns from, and what was left out of it.

    Attributes:
        groups: in a stable order that does not depend on the order of rows.
        left_out: everything that is not in `groups`, with its reason.
        singletons: ids of groups of one, whose advantage is 0.
        unit: "call" or "trajectory", as the grouping had it.
    """

    groups: Sequence[Group]
    left_out: Sequence[LeftOut] = field(default=())
    singletons: Sequence[str] = field(default=())
    unit: str = "call"

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def n_members(self) -> int:
        """How many members the groups have together."""
        return sum(len(group.members) for group in self.groups)
