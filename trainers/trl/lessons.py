"""What a step has to learn from: members for GRPO, and pairs or single completions for the others.

`tracetune.rows` says which completions are compared or imitated. What is learned are the
members' own tokens, as they were sampled, and not their text tokenised once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tracetune.rows import Rows, kto_rows, preference_rows, supervised_rows
from tracetune.rows.messages import completion_of, json_text, prompt_of
from tracetune.trainers.local.members import TrainableMember
from tracetune.types import Group, GroupBatch, Member

Read = Callable[[GroupBatch], tuple[list[TrainableMember], Counter[str]]]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A step's rows, for every process that takes part.

    Attributes:
        step: 1 for the first step of a trainer's life.
        rows: members for GRPO; else rows as the collators of TRL's trainers take them.
        skipped: members that no row was made of, by reason.
        learning_rate: of the step's updates.
        state: the leader's adapter and optimiser, where the others may have another.
    """

    step: int
    rows: Sequence[Any]
    skipped: Counter[str]
    learning_rate: float
    state: Mapping[str, Any] | None = None


def preference_pairs(batch: GroupBatch, read: Read) -> tuple[list[Row], Counter[str]]:
    """Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`, and the members in none of them, by reason."""
    return _rows(batch, preference_rows(batch, form="trl"), read, ("chosen", "rejected"))


def judged_completions(batch: GroupBatch, read: Read) -> tuple[list[Row], Counter[str]]:
    """Rows of `prompt_ids`, `completion_ids` and `label`, each beside a completion to another prompt."""
    rows, skipped = _rows(batch, kto_rows(batch), read, ("completion",))
    # KTO measures how far the policy has moved by what it says of another row's completion.
    return [{**row, "KL_completion_ids": rows[index - 1]["completion_ids"]} for index, row in enumerate(rows)], skipped


def best_completions(batch: GroupBatch, read: Read) -> tuple[list[Row], Counter[str]]:
    """Rows of `input_ids` and `labels`: the best member of each group, its prompt not learned."""
    best = supervised_rows(batch)
    split = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in best.rows]
    rows, skipped = _rows(batch, Rows(split, best.skipped), read, ("completion",))
    return [
        {
            "input_ids": row["prompt_ids"] + row["completion_ids"],
            "labels": [-100] * len(row["prompt_ids"]) + row["completion_ids"],
        }
        for row in rows
    ], skipped


ROWS: dict[str, Callable[[GroupBatch, Read], tuple[list[Row], Counter[str]]]] = {
    "dpo": preference_pairs,
    "kto": judged_completions,
    "sft": best_completions,
}
"""What a method learns from, where that is not members; by the method's name."""


def members_in(rows: Sequence[Any]) -> int:
    """How many members rows were made of."""
    return sum(2 if isinstance(row, dict) and "rejected_ids" in row else 1 for row in rows)


def completion_tokens(rows: Sequence[Any]) -> int:
    """How many tokens the completions in rows have."""
    return sum(map(_completion_tokens, rows))


def _completion_tokens(row: Any) -> int:
    if isinstance(row, TrainableMember):
        return len(row.completion_ids)
    if "labels" in row:
        return sum(label != -100 for label in row["labels"])
    return sum(len(row[name]) for name in ("completion_ids", "chosen_ids", "rejected_ids") if name in row)


def _rows(batch: GroupBatch, rows: Rows, read: Read, columns: Sequence[str]) -> tuple[list[Row], Counter[str]]:
    """The rows in the tokens of the members that they were made of."""
    members: dict[tuple[str, str], Member] = {}
    for group in batch:
        for member in group.members:
            members.setdefault(_identity(prompt_of(member), completion_of(member)), member)
    skipped = Counter(rows.skipped)
    tokenised: list[Row] = []
    for row in rows.rows:
        # The rows say what is learned, whoever sampled it: a teacher's words are tokens like others.
        sampled = [replace(members[_identity(row["prompt"], row[column][0])], teacher=None) for column in columns]
        read_members, reasons = read(GroupBatch([Group({}, sampled)]))
        if len(read_members) < len(sampled):
            skipped.update(reasons)
            skipped["no_partner"] += len(read_members)
            continue
        completions = {f"{name}_ids": list(one.completion_ids) for name, one in zip(columns, read_members, strict=True)}
        rest = {"label": row["label"]} if "label" in row else {}
        tokenised.append({"prompt_ids": list(read_members[0].prompt_ids), **completions, **rest})
    return tokenised, +skipped


def _identity(prompt: Any, completion: Any) -> tuple[str, str]:
    return json_text(prompt, canonical=True), json_text(completion, canonical=True)
