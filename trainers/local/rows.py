"""Rows: members laid out so that what they have in common is computed once.

Sorted by their tokens, sequences with a common beginning stand next to each other. A row
is a run of such neighbours as one prefix tree: a prompt that twelve members share, an
instruction that two prompts share, a completion that five members gave, each stand in it
once. A token sees the tokens on its own path and no others, at the positions it would
have alone, so every member reads the numbers it would have had alone.

A tree needs a mask, and that costs the square of the whole row where it is dense; a single
path needs none. `cut_rows` weighs one against the other and cuts the sorted members where that is
cheapest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tracetune.trainers.local.members import TrainableMember

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row costs, in multiply-adds of the model.

    Attributes:
        token: of one token in the linear layers.
        pair: of one entry of an attention matrix.
    """

    token: float
    pair: float

    def of(self, tokens: int, *, is_path: bool) -> float:
        """The cost of one row: a causal kernel leaves out half of a path's matrix, and nothing of a tree's."""
        return self.token * tokens + self.pair * tokens * tokens * (0.5 if is_path else 1.0)


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that one sequence adds to a row, and the nodes that lead to them."""

    nodes: slice
    stem: IntArray


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a member's completion is predicted: one node a token."""

    member: TrainableMember
    nodes: IntArray


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence of the model's input: a prefix tree, its nodes in depth-first order.

    Attributes:
        token_ids: of each node.
        positions: each node's depth.
        branches: in the nodes' order.
        readings: one for each member of the row.
    """

    token_ids: IntArray
    positions: IntArray
    branches: Sequence[Branch]
    readings: Sequence[Reading]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_path(self) -> bool:
        """Whether it never branches, so that plain causal attention serves it."""
        return all(len(branch.stem) == branch.nodes.start for branch in self.branches)

    def subtree_ends(self, size: int) -> IntArray:
        """Of each node, the first one behind it that does not descend from it; beyond the row's own length, the next.

        A node sees just those up to itself whose subtree has not ended, so that what pads a
        row to `size` sees itself alone.
        """
        ends = np.arange(1, size + 1)
        ends[: len(self)] = len(self)
        for branch in self.branches:
            earlier = ends[: branch.nodes.start]
            ended = earlier == len(self)
            ended[branch.stem] = False
            earlier[ended] = branch.nodes.start
        return ends


def cut_rows(members: Sequence[TrainableMember], *, cost: Cost, budget: int, share: bool = True) -> list[Row]:
    """Lay members out in the rows that are cheapest together.

    Args:
        members: in any order; the rows do not depend on it.
        cost: of tokens and of attention.
        budget: tokens that a row of several members may have; one member alone may have more.
        share: False gives every member a row of its own.

    Returns:
        The rows, each member in exactly one of them.
    """
    if not members:
        return []
    ordered = sorted(members, key=lambda member: (_read_tokens(member), member.completion_ids[-1], member.advantage))
    sequences = [np.array(_read_tokens(member), dtype=np.int64) for member in ordered]
    shared = [0, *(common_length(left, right) for left, right in pairwise(sequences))]
    ends = _cheapest_cuts([len(sequence) for sequence in sequences], shared, cost, budget, share)
    starts = [0, *ends[:-1]]
    return [
        _row(ordered[start:end], sequences[start:end], shared[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def common_length(left: IntArray, right: IntArray) -> int:
    """How many tokens two sequences have in common at their beginning."""
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size


def _read_tokens(member: TrainableMember) -> tuple[int, ...]:
    """All but the last token, which is predicted and never read."""
    return (member.prompt_ids + member.completion_ids)[:-1]


def _cheapest_cuts(lengths: Sequence[int], shared: Sequence[int], cost: Cost, budget: int, share: bool) -> list[int]:
    """Where to cut the sorted sequences: the ends of the rows, by dynamic programming over the last row's start."""
    count = len(lengths)
    best = [0.0] + [float("inf")] * count
    start_of = [0] * (count + 1)
    for end in range(1, count + 1):
        tokens, is_path = 0, True
        for start in range(end - 1, -1, -1):
            # One more sequence before the row's first: what the first adds to it is what they do not share.
            tokens = tokens - shared[start + 1] + lengths[start] if start < end - 1 else lengths[start]
            is_path = is_path and (start == end - 1 or shared[start + 1] == lengths[start])
            price = cost.of(tokens, is_path=is_path)
            several = start < end - 1
            if several and (not share or tokens > budget or price >= best[end]):
                break  # a row only grows from here
            if best[start] + price < best[end]:
                best[end], start_of[end] = best[start] + price, start
    ends = [count]
    while start_of[ends[-1]] > 0:
        ends.append(start_of[ends[-1]])
    return ends[::-1]


def _row(members: Sequence[TrainableMember], sequences: Sequence[IntArray], shared: Sequence[int]) -> Row:
    """The prefix tree of neighbours in sorted order: each branches off the path of the one before."""
    pieces: list[IntArray] = []
    branches: list[Branch] = []
    readings: list[Reading] = []
    positions: list[IntArray] = []
    path = np.empty(0, dtype=np.int64)
    size = 0
    for member, sequence, common in zip(members, sequences, shared, strict=True):
        stem = path[:common] if branches else path
        fresh = sequence[len(stem) :]
        if len(fresh):
            pieces.append(fresh)
            positions.append(np.arange(len(stem), len(sequence)))
            branches.append(Branch(slice(size, size + len(fresh)), stem))
        path = np.concatenate([stem, np.arange(size, size + len(fresh))])
        size += len(fresh)
        # The prompt's last token predicts the completion's first.
        readings.append(Reading(member, path[len(member.prompt_ids) - 1 :]))
    return Row(np.concatenate(pieces), np.concatenate(positions), branches, readings)
