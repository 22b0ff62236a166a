"""What the service is told to learn: everything but the gradient itself is folded into the advantages.

The service multiplies each token's loss by its advantage and adds all tokens up. So a
token's weight in the mean over members and groups goes into its advantage, and so does
its importance where another policy sampled it. Both exactly: they are positive, and
neither clipping nor the minimum notices. A penalty for leaving the base model goes in as
well, as a reward that each token loses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tracetune.trainers.local.importance import truncated_importance
from tracetune.trainers.local.members import TrainableMember
from tracetune.trainers.tinker.service import Lesson
from tracetune.trainers.tinker.settings import TinkerSettings


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a member's tokens are held against, in nats.

    Attributes:
        old: their log-probabilities when the step began, or when they were sampled.
        sampled: when they were sampled, if they are weighed by their importance.
        base: under the base model; None where there is no penalty.
    """

    old: np.ndarray
    sampled: np.ndarray | None = None
    base: np.ndarray | None = None


def needs_present_logprobs(member: TrainableMember) -> bool:
    """Whether the present weights must say how likely a member's tokens are.

    What was recorded says that only where the policy itself sampled them, at temperature 1.
    """
    return member.logprobs is None or member.is_corrected or member.temperature != 1.0


def needs_base_logprobs(member: TrainableMember, settings: TinkerSettings) -> bool:
    """Whether the base model must say how likely they are: for the penalty, or as whoever sampled them."""
    return settings.kl != 0.0 or (member.is_corrected and member.logprobs is None)


def lessons_of(members: Sequence[TrainableMember], anchors: Sequence[Anchor], settings: TinkerSettings) -> list[Lesson]:
    """What a step's members come to.

    Args:
        members: with the weight of each of their tokens.
        anchors: what each member's tokens are held against.
        settings: β, and how importance is counted.

    Example:
        >>> member = TrainableMember((5,), (6, 7), (-1.0, -2.0), 1.0, advantage=3.0, weight=0.5)
        >>> (lesson,) = lessons_of([member], [Anchor(np.array([-1.0, -2.0]))], TinkerSettings())
        >>> lesson.advantages
        [1.5, 1.5]
    """
    lessons = []
    for member, anchor in zip(members, anchors, strict=True):
        advantages = member.advantage * _importance(anchor, settings)
        if anchor.base is not None:
            advantages = advantages - settings.kl * (anchor.old - anchor.base)
        lessons.append(
            Lesson(member.prompt_ids, member.completion_ids, anchor.old.tolist(), (member.weight * advantages).tolist())
        )
    return lessons


def _importance(anchor: Anchor, settings: TinkerSettings) -> np.ndarray:
    if anchor.sampled is None:
        return np.ones(len(anchor.old))
    importance_T = truncated_importance(
        torch.tensor(anchor.old),
        torch.tensor(anchor.sampled),
        [len(anchor.old)],
        level=settings.importance or "token",
        cap=settings.importance_cap,
    )
    return importance_T.numpy()
