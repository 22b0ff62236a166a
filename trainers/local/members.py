"""Members a step can learn from: exact tokens, an old log-probability for each, and a weight.

A batch comes as it was recorded. Here each member is made exact or left out with a
reason, and the counts that the loss divides by are taken over those that remain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tracetune.trainers.local.loss import LOSSES, Counts
from tracetune.trainers.local.settings import LocalSettings
from tracetune.trainers.local.tokens import MemberTokeniser
from tracetune.types import GroupBatch, Member


@dataclass(frozen=True, slots=True)
class TrainableMember:
    """One completion, with all that its tokens' losses need.

    Attributes:
        logprobs: when it was sampled; None where they are not known.
        temperature: what logits are divided by.
        weight: of each of its tokens in the step's loss.
        is_imitated: its tokens are to become likelier, whatever policy sampled them; the
            advantage says how much that counts.
        is_corrected: its tokens are weighed by their importance: against `logprobs`, or, where
            these are not known, against the model without its adapter.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    temperature: float
    advantage: float
    weight: float = 0.0
    is_imitated: bool = False
    is_corrected: bool = False


def trainable_members(
    batch: GroupBatch,
    *,
    settings: LocalSettings,
    vocabulary: int,
    longest: int | None,
    tokeniser: MemberTokeniser,
) -> tuple[list[TrainableMember], Counter[str]]:
    """The members of a batch that can be learned from, and how many cannot, by reason.

    Args:
        batch: groups, as the store gave them.
        settings: which loss they are weighed for, and what is done with a teacher's.
        vocabulary: how many tokens the model knows.
        longest: how many positions it has; None where there is no limit.
        tokeniser: gives their tokens.

    Returns:
        The members in the batch's order, and the count of each reason: "no_tokens",
        "empty_prompt", "empty_completion", "unknown_token", "too_long", "no_advantage"
        (not a finite number), "not_imitated" (a teacher's, without log-probabilities, and
        not better than its group).
    """
    skipped: Counter[str] = Counter()
    kept: list[list[tuple[Member, TrainableMember]]] = []
    for group in batch.groups:
        mean_reward = sum(member.reward for member in group.members) / max(1, len(group.members))
        pairs = []
        for member in group.members:
            trainable = _trainable(member, mean_reward, settings, vocabulary, longest, tokeniser)
            if isinstance(trainable, str):
                skipped[trainable] += 1
            else:
                pairs.append((member, trainable))
        if pairs:
            kept.append(pairs)
    weight = LOSSES[settings.loss].weight
    return _weighed(kept, batch.unit, weight, settings.max_completion_length or 0), skipped


def parts_by_module(batch: GroupBatch) -> dict[str, GroupBatch]:
    """What each module has in a batch, as if it were all there is, by the modules' names in order."""
    modules = sorted({member.module for group in batch for member in group.members})
    parts = {}
    for module in modules:
        groups = [
            replace(group, members=[member for member in group.members if member.module == module]) for group in batch
        ]
        parts[module] = replace(batch, groups=[group for group in groups if group.members])
    return parts


def unknown_sampler_notice(members: Sequence[TrainableMember]) -> str | None:
    """What to say of members of which nobody knows how likely they were when they were sampled; None without any."""
    unknown = [member for member in members if member.logprobs is None and not member.is_imitated]
    if not unknown:
        return None
    stand_in = "the model without its adapter" if unknown[0].is_corrected else "the present weights"
    return (
        "some members have no log-probabilities of the policy that sampled them (text alone, greedy or truncated "
        f"sampling); those of {stand_in} stand in"
    )


def has_something_to_learn(members: Sequence[TrainableMember], kl: float) -> bool:
    """Whether a step over these members would have a gradient at all."""
    return any(kl != 0.0 or member.advantage != 0.0 for member in members)


def _trainable(
    member: Member,
    mean_reward: float,
    settings: LocalSettings,
    vocabulary: int,
    longest: int | None,
    tokeniser: MemberTokeniser,
) -> TrainableMember | str:
    """The member with its tokens, or the reason why it can't be learned from."""
    if not math.isfinite(member.advantage):
        return "no_advantage"
    tokens = tokeniser.tokens_of(member)
    if tokens is None:
        return "redacted" if member.is_redacted else "no_tokens"
    prompt_ids, completion_ids = tuple(map(int, tokens.prompt_ids)), tuple(map(int, tokens.completion_ids))
    if not prompt_ids:
        return "empty_prompt"
    if not completion_ids:
        return "empty_completion"
    if not all(0 <= token < vocabulary for token in (*prompt_ids, *completion_ids)):
        return "unknown_token"
    # The last token is predicted and never read, so it needs no position.
    if longest is not None and len(prompt_ids) + len(completion_ids) - 1 > longest:
        return "too_long"
    logprobs = _usable_logprobs(member, len(completion_ids)) if tokens.exact else None
    is_imitated = member.teacher is not None and logprobs is None
    if is_imitated and not (settings.distil > 0.0 and member.reward > mean_reward):
        return "not_imitated"
    return TrainableMember(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=logprobs,
        # Greedy tokens have no temperature of their own, and a teacher's says nothing of the policy.
        temperature=1.0 if is_imitated else member.sampling.temperature or 1.0,
        advantage=settings.distil if is_imitated else float(member.advantage),
        is_imitated=is_imitated,
        is_corrected=not is_imitated and (member.teacher is not None or settings.importance is not None),
    )


def _usable_logprobs(member: Member, length: int) -> tuple[float, ...] | None:
    if not member.on_policy or member.logprobs is None or len(member.logprobs) != length:
        return None
    logprobs = tuple(map(float, member.logprobs))
    return logprobs if all(map(math.isfinite, logprobs)) else None


def _weighed(
    groups: Sequence[Sequence[tuple[Member, TrainableMember]]],
    unit: str,
    weight: Callable[[Counts], float],
    max_completion_length: int,
) -> list[TrainableMember]:
    step_tokens = sum(len(trainable.completion_ids) for pairs in groups for _, trainable in pairs)
    weighed = []
    for pairs in groups:
        # A member's unit is its trajectory, or itself.
        units = [member.trajectory if unit == "trajectory" else slot for slot, (member, _) in enumerate(pairs)]
        unit_tokens: Counter[int] = Counter()
        for name, (_, trainable) in zip(units, pairs, strict=True):
            unit_tokens[name] += len(trainable.completion_ids)
        for name, (_, trainable) in zip(units, pairs, strict=True):
            counts = Counts(
                unit_tokens=unit_tokens[name],
                units=len(unit_tokens),
                group_tokens=unit_tokens.total(),
                groups=len(groups),
                step_tokens=step_tokens,
                max_completion_length=max_completion_length,
            )
            weighed.append(replace(trainable, weight=weight(counts)))
    return weighed
