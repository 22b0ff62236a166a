"""Members as the tensors that TRL's loss takes, cut into micro-batches and dealt out to processes.

A micro-batch holds members of one kind and temperature whose prompts are about equally long. It
is never padded at the left: what TRL calls the prompt is the part that all its rows have
tokens for, and what it calls the completion begins with the rest of each prompt, at
weight 0. So every token stands at the position it had when it was sampled, for models
that learn their positions as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracetune.trainers.local.members import TrainableMember


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Members of one forward, of one kind and one temperature.

    Attributes:
        idle: how many of them, the last ones, only keep a process in step with the others.
    """

    members: tuple[TrainableMember, ...]
    idle: int = 0

    @property
    def kind(self) -> tuple[bool, float]:
        """Whether its members are imitated, and what logits are divided by."""
        return _kind(self.members[0])


def micro_batches(members: Sequence[TrainableMember], token_budget: int) -> list[MicroBatch]:
    """All members, in micro-batches of at most so many tokens, padding included.

    A member longer than the budget stands alone.
    """
    batches: list[MicroBatch] = []
    pending: list[TrainableMember] = []
    longest = 0
    for member in sorted(members, key=lambda m: (_kind(m), len(m.prompt_ids), len(m.completion_ids))):
        length = len(member.prompt_ids) + len(member.completion_ids)
        longest = max(longest, length)
        fits = longest * (len(pending) + 1) <= token_budget
        if pending and not (fits and _kind(member) == _kind(pending[0])):
            batches.append(MicroBatch(tuple(pending)))
            pending, longest = [], length
        pending.append(member)
    return [*batches, MicroBatch(tuple(pending))] if pending else batches


def dealt_out(batches: Sequence[MicroBatch], processes: int, rank: int) -> list[MicroBatch]:
    """A process's share of each micro-batch: as many members as every other process has, some of them idle.

    TRL's loss speaks with the other processes about each row, so all have to have
    equally many.
    """
    shares = []
    for batch in batches:
        mine = batch.members[rank::processes]
        idle = -(-len(batch.members) // processes) - len(mine)
        shares.append(MicroBatch(mine + batch.members[:1] * idle, idle))
    return shares


@dataclass(frozen=True, slots=True)
class Tensors:
    """A micro-batch as TRL takes it; `_B` rows, `_P` common prompt tokens, `_T` tokens after those.

    Attributes:
        prompt_ids_BP: the leading tokens, of which every row has so many.
        completion_ids_BT: the rest, padded at the right.
        present_BT: 1 where a token stands.
        learned_BT: True where a completion token stands.
        weights_BT: of each completion token in the step's loss; 0 elsewhere.
        advantages_B: of each member.
        recorded_BT: log-probabilities when they were sampled; NaN where they are not known,
            0 where there is no completion token.
        corrected_BT: True where a token is weighed by its importance.
    """

    prompt_ids_BP: Tensor
    completion_ids_BT: Tensor
    present_BT: Tensor
    learned_BT: Tensor
    weights_BT: Tensor
    advantages_B: Tensor
    recorded_BT: Tensor
    corrected_BT: Tensor


def tensors_of(batch: MicroBatch, device: torch.device) -> Tensors:
    """A micro-batch's tensors on a device."""
    common = min(len(member.prompt_ids) for member in batch.members)
    width = max(len(member.prompt_ids) - common + len(member.completion_ids) for member in batch.members)
    shape = (len(batch.members), width)
    completion_ids_BT = torch.zeros(shape, dtype=torch.long)
    present_BT = torch.zeros(shape, dtype=torch.long)
    learned_BT = torch.zeros(shape, dtype=torch.bool)
    weights_BT = torch.zeros(shape)
    recorded_BT = torch.zeros(shape)
    corrected_BT = torch.zeros(shape, dtype=torch.bool)
    for row, member in enumerate(batch.members):
        counts = row < len(batch.members) - batch.idle
        begin = len(member.prompt_ids) - common
        end = begin + len(member.completion_ids)
        tokens = (*member.prompt_ids[common:], *member.completion_ids)
        completion_ids_BT[row, :end] = torch.tensor(tokens)
        present_BT[row, :end] = 1
        learned_BT[row, begin:end] = counts
        weights_BT[row, begin:end] = member.weight if counts else 0.0
        known = member.logprobs if member.logprobs is not None else [torch.nan] * (end - begin)
        recorded_BT[row, begin:end] = torch.tensor(known)
        corrected_BT[row, begin:end] = member.is_corrected
    return Tensors(
        torch.tensor([member.prompt_ids[:common] for member in batch.members]).to(device),
        completion_ids_BT.to(device),
        present_BT.to(device),
        learned_BT.to(device),
        weights_BT.to(device),
        torch.tensor([member.advantage for member in batch.members]).to(device),
        recorded_BT.to(device),
        corrected_BT.to(device),
    )


def _kind(member: TrainableMember) -> tuple[bool, float]:
    return member.is_imitated, member.temperature
