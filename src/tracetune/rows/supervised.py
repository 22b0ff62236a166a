"""Supervised rows: what a policy did well, to be imitated.

They are in the form that OpenAI's fine-tuning takes, and most services after it. Which
members are worth imitating is the one question; a service that weighs its rows can be
given all of them, with the advantage as the weight, and pushes away from the bad ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from tracetune.errors import InvalidInput
from tracetune.rows.messages import Rows, Sample, completion_of, prompt_of, rows_of, samples_of, summed_by_sample
from tracetune.types import GroupBatch, Member

Select = Literal["best", "above", "weighted"]


def supervised_rows(batch: GroupBatch, *, select: Select = "best", threshold: float = 0.0) -> Rows:
    """Rows `{"messages": [prompt…, completion]}` of the members that are worth imitating.

    A row that would stand twice stands once.

    Args:
        batch: where trajectories are compared, the calls of one are chosen together.
        select: "best": of each group the member with the highest reward, the first of
            several; "above": every member whose advantage is above the threshold;
            "weighted": every member, with its advantage, which may be negative, beside
            the messages as `weight`. Equal rows are one whose weight is their sum.
        threshold: of the advantage, for "above".

    Raises:
        InvalidInput: if `select` is none of these, or a message is no JSON.

    Example:
        >>> supervised_rows(batch).rows  # doctest: +SKIP
        [{'messages': [{'role': 'user', 'content': '2 + 2?'}, {'role': 'assistant', 'content': '4'}]}]

    Reference:
        Rows with a root-level `weight` of either sign are those of Fireworks' weighted
        training: a row's loss is multiplied by it, and either all rows have one or none.
    """
    skipped: Counter[str] = Counter()
    if select == "weighted":
        weighted = summed_by_sample(batch, skipped)
        return rows_of([{**_row(member), "weight": weight} for member, weight in weighted], skipped)
    if select not in ("best", "above"):
        raise InvalidInput(f'select is "best", "above" or "weighted", not {select!r}')
    chosen: dict[tuple[str, str], Member] = {}
    for group in batch:
        samples = samples_of(group.members, skipped)
        if select == "best":
            worthy = _best(samples, batch.unit)
            skipped["not_best"] += len(samples) - len(worthy)
        else:
            worthy = [sample for sample in samples if sample.member.advantage > threshold]
            skipped["not_above"] += len(samples) - len(worthy)
        for sample in worthy:
            skipped["duplicate"] += (sample.prompt, sample.completion) in chosen
            chosen.setdefault((sample.prompt, sample.completion), sample.member)
    return rows_of([_row(member) for member in chosen.values()], skipped)


def _best(samples: list[Sample], unit: str) -> list[Sample]:
    if not samples:
        return []
    best = max(samples, key=lambda sample: sample.member.reward)
    if unit == "trajectory":
        return [sample for sample in samples if sample.member.trajectory == best.member.trajectory]
    return [best]


def _row(member: Member) -> Mapping[str, Any]:
    return {"messages": [*prompt_of(member), completion_of(member)]}
