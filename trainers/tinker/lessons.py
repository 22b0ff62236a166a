"""What the service is told to learn: everything but the gradient itself is folded into the advantages.

The service multiplies each token's loss by its advantage and adds all tokens up. So a
token's weight in the mean over members and groups goes into its advantage, exactly: the
weight is positive, and neither clipping nor the minimum notices. A penalty for leaving
the base model goes in as well, as a reward that each token loses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracetune.trainers.local.members import TrainableMember
from tracetune.trainers.tinker.service import Lesson


def lessons_of(
    members: Sequence[TrainableMember],
    old_logprobs: Sequence[np.ndarray],
    base_logprobs: Sequence[np.ndarray] | None,
    *,
    kl: float,
) -> list[Lesson]:
    """What a step's members come to.

    Args:
        members: with the weight of each of their tokens.
        old_logprobs: of each member's tokens when they were sampled, nats.
        base_logprobs: the same tokens' under the base model; needed when `kl` is not 0.
        kl: β; a token's advantage falls by β for each nat of its old log-probability over its base one.

    Example:
        >>> member = TrainableMember((5,), (6, 7), (-1.0, -2.0), 1.0, advantage=3.0, weight=0.5)
        >>> (lesson,) = lessons_of([member], [np.array([-1.0, -2.0])], None, kl=0.0)
        >>> lesson.advantages
        [1.5, 1.5]
    """
    lessons = []
    for index, (member, logprobs) in enumerate(zip(members, old_logprobs, strict=True)):
        advantages = np.full(len(member.completion_ids), member.advantage)
        if base_logprobs is not None:
            advantages = advantages - kl * (logprobs - base_logprobs[index])
        weighed = (member.weight * advantages).tolist()
        lessons.append(Lesson(member.prompt_ids, member.completion_ids, logprobs.tolist(), weighed))
    return lessons
