"""What every kind of row is made of: a member's prompt and its completion, as chat messages.

Two prompts are the same where their messages are the same JSON, the order of an object's
names apart: chat templates see no more than that.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracetune.errors import InvalidInput
from tracetune.types import GroupBatch, Member


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows, and the members that are in none of them.

    Attributes:
        rows: in the order of the batch's groups and their members.
        skipped: members that no row was made of, by reason; documented in `docs/rows.md`.
    """

    rows: Sequence[Mapping[str, Any]]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def jsonl(self) -> str:
        r"""The rows as text, one JSON object a line.

        Example:
            >>> Rows([{"messages": [{"role": "user", "content": "2 + 2?"}]}]).jsonl()
            '{"messages": [{"role": "user", "content": "2 + 2?"}]}\n'
        """
        return "".join(f"{json_text(row)}\n" for row in self.rows)


@dataclass(frozen=True, slots=True)
class Sample:
    """A member as rows see it.

    Attributes:
        prompt: the prompt as canonical JSON, equal where prompts are.
        completion: the completion's message as canonical JSON, likewise.
    """

    member: Member
    prompt: str
    completion: str


def samples_of(members: Iterable[Member], skipped: Counter[str]) -> list[Sample]:
    """The members that a row can be made of; the others are counted in `skipped`.

    Raises:
        InvalidInput: if a message holds what JSON cannot express.
    """
    samples = []
    for member in members:
        reason = _unusable(member)
        if reason is None:
            prompt, completion = prompt_of(member), completion_of(member)
            samples.append(Sample(member, json_text(prompt, canonical=True), json_text(completion, canonical=True)))
        else:
            skipped[reason] += 1
    return samples


def prompt_of(member: Member) -> list[dict[str, Any]]:
    """The messages that were sent, as they were sent."""
    return [dict(message) for message in member.messages]


def completion_of(member: Member) -> dict[str, Any]:
    """The assistant's message that was sampled; its content is None where it only calls tools."""
    if not member.tool_calls:
        return {"role": "assistant", "content": member.text}
    calls = [dict(call) for call in member.tool_calls]
    return {"role": "assistant", "content": member.text or None, "tool_calls": calls}


def summed_by_sample(batch: GroupBatch, skipped: Counter[str]) -> list[tuple[Member, float]]:
    """Each pair of prompt and completion once, with the sum of its advantages.

    A completion that was sampled several times pulls the policy as often; and where it was
    better than one group and worse than another, what remains of it is the difference.
    Samples whose advantages sum to 0 say nothing, and are skipped.
    """
    alike: dict[tuple[str, str], list[Member]] = {}
    for group in batch:
        for sample in samples_of(group.members, skipped):
            alike.setdefault((sample.prompt, sample.completion), []).append(sample.member)
    summed = []
    for members in alike.values():
        total = math.fsum(member.advantage for member in members)
        if total:
            summed.append((members[0], total))
            skipped["duplicate"] += len(members) - 1
        else:
            skipped["zero_advantage"] += len(members)
    return summed


def rows_of(rows: Sequence[Mapping[str, Any]], skipped: Counter[str]) -> Rows:
    """Rows with the reasons that occurred, in the order of their names."""
    return Rows(rows, {reason: count for reason, count in sorted(skipped.items()) if count})


def json_text(value: Any, *, canonical: bool = False) -> str:
    """A value as JSON that UTF-8 can hold; canonical: without spaces, names in order.

    Raises:
        InvalidInput: if there is none.
    """
    try:
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            sort_keys=canonical,
            separators=(",", ":") if canonical else None,
            default=_plain,
        )
        text.encode()  # refuses halves of surrogate pairs
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"a row cannot be written as JSON ({error}); record messages of plain values") from error
    return text


def _unusable(member: Member) -> str | None:
    if not member.messages:
        return "no_prompt"
    if member.is_redacted:
        return "redacted"
    if not member.text and not member.tool_calls:
        return "empty_completion"
    if not (math.isfinite(member.reward) and math.isfinite(member.advantage)):
        return "not_a_number"
    return None


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")
