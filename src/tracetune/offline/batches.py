"""Stored groups as the batches of training steps, and the slice of them that is held out.

What is held out follows from each example's name alone, so that a later training on more
logs holds out the same ones; which groups make a batch follows from the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tracetune.errors import InvalidInput
from tracetune.grouping import Store
from tracetune.types import Group, GroupBatch, Grouping

SINGLETONS = Grouping(by=("module", "invocation"), advantage="batch")
"""For logs in which no example was answered twice: calls of a module are compared across examples."""

_SLICES = 10_000


@dataclass(frozen=True, slots=True)
class StoredGroups:
    """What there is to train on, and what is held out.

    Attributes:
        train: every group that may be trained on.
        held_out: the groups of the held-out examples.
        grouping: how they were aligned.
    """

    train: GroupBatch
    held_out: GroupBatch
    grouping: Grouping


def stored_groups(store: Store, where: str | None, grouping: Grouping | None, held_out: float) -> StoredGroups:
    """The groups of a store that a condition allows, in two parts.

    Args:
        store: with the calls.
        where: a condition over the columns of `calls`.
        grouping: how they are aligned; by default `Grouping()`, or `SINGLETONS` where no
            example was answered twice.
        held_out: the share of examples that is held out.

    Raises:
        InvalidInput: if there is nothing to train on, with the reasons.
        QueryError: if DuckDB refuses the condition.
    """
    condition = where or "true"
    chosen = grouping or Grouping()
    train = store.groups(chosen, _without_slice(condition, held_out))
    if grouping is None and not train.groups and train.singletons:
        chosen = SINGLETONS
        train = store.groups(chosen, _without_slice(condition, held_out))
    if not train.groups:
        raise InvalidInput(_nothing(store, where, chosen, train))
    kept = store.groups(chosen, _slice_of(condition, held_out)) if held_out else GroupBatch([])
    return StoredGroups(train, kept, chosen)


def batches_of(groups: GroupBatch, *, members: int, passes: int, seed: int) -> list[GroupBatch]:
    """The batch of each step: whole groups in an order that the seed draws anew for each pass.

    A group that was compared across examples is one of many calls, and is cut.

    Args:
        groups: what there is to train on.
        members: how many a batch has; the group that fills it may bring more.
        passes: how often each group is trained on.
        seed: of the order.

    Example:
        >>> batches_of(GroupBatch([]), members=64, passes=1, seed=0)
        []
    """
    pieces = [piece for group in groups for piece in _pieces(group, members)]
    batches = []
    for number in range(passes):
        order = list(pieces)
        random.Random(f"{seed}/{number}").shuffle(order)  # noqa: S311  an order, not a secret
        batch: list[Group] = []
        size = 0
        for group in order:
            batch.append(group)
            size += len(group.members)
            if size >= members:
                batches.append(GroupBatch(batch, unit=groups.unit))
                batch, size = [], 0
        if batch:
            batches.append(GroupBatch(batch, unit=groups.unit))
    return batches


def _pieces(group: Group, members: int) -> Sequence[Group]:
    """A group as it is, or members of it one by one where they were not answers to one example."""
    if "example_id" in group.key or len(group.members) <= members:
        return [group]
    return [replace(group, members=[member]) for member in group.members]


def _slice_of(condition: str, share: float) -> str:
    return f"({condition}) AND md5_number_lower(coalesce(example_id, '')) % {_SLICES} < {round(share * _SLICES)}"


def _without_slice(condition: str, share: float) -> str:
    return f"({condition}) AND NOT (md5_number_lower(coalesce(example_id, '')) % {_SLICES} < {round(share * _SLICES)})"


def _nothing(store: Store, where: str | None, grouping: Grouping, found: GroupBatch) -> str:
    """Why there is nothing to train on, and what to do about it."""
    told = f"where={where!r}" if where else "the store"
    if not found.left_out and not found.singletons:
        runs = [str(row["run"]) for row in store.sql("SELECT DISTINCT run FROM rollouts ORDER BY ALL LIMIT 8").rows()]
        return f"{told} matches no call; the runs of {store.path} are {', '.join(runs) or 'none'}"
    if grouping.modules is not None:
        names = [
            str(row["module"])
            for row in store.sql("SELECT DISTINCT module FROM calls WHERE module IS NOT NULL ORDER BY ALL").rows()
        ]
        if not set(grouping.modules) & set(names):
            return f"no call is of the modules {', '.join(grouping.modules)}; there are {', '.join(names) or 'none'}"
    reasons = Counter(f"{item.kind}s {item.reason}" for item in found.left_out)
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(4)) or "all groups are of one call"
    return (
        f"nothing that {told} matches can be trained on ({counted}); `tracetune lint {store.path}` says what to do "
        "about each"
    )
