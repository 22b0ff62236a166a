"""A step's figures, computed from the log-probabilities that the service gave for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tracetune.trainers.tinker.lessons import Anchor
from tracetune.trainers.tinker.service import Learned, Lesson
from tracetune.types import StepReport


def report_of(
    lessons: Sequence[Lesson],
    learned: Learned,
    anchors: Sequence[Anchor],
    *,
    loss: str,
    thresholds: tuple[float, float],
    step: int,
    seconds: float,
    skipped: Mapping[str, int],
) -> StepReport:
    """The report of an update.

    The service shows the log-probability of each token that was sampled, not the whole
    distribution: the entropy is an estimate, minus their mean.

    Args:
        lessons: what was learned.
        learned: what the service said of it.
        anchors: what each lesson's tokens were held against.
        loss: "importance_sampling", "ppo" or "cispo".
        thresholds: between which ratios are not clipped.
        step: its number.
        seconds: wall time.
        skipped: members that were left out, by reason.
    """
    logprobs_T = np.concatenate(learned.logprobs)
    old_logprobs_T = np.concatenate([lesson.logprobs for lesson in lessons])
    advantages_T = np.concatenate([lesson.advantages for lesson in lessons])
    low, high = thresholds
    ratio_T = np.exp(logprobs_T - old_logprobs_T)
    clipped_T = np.clip(ratio_T, low, high)
    if loss == "cispo":
        gain_T = clipped_T * logprobs_T * advantages_T
        is_clipped_T = clipped_T != ratio_T
    elif loss == "ppo":
        gain_T = np.minimum(ratio_T * advantages_T, clipped_T * advantages_T)
        is_clipped_T = ((ratio_T < low) & (advantages_T < 0)) | ((ratio_T > high) & (advantages_T > 0))
    else:
        gain_T = ratio_T * advantages_T
        is_clipped_T = np.zeros(len(ratio_T), bool)
    kl = None
    base_logprobs = [anchor.base for anchor in anchors if anchor.base is not None]
    if base_logprobs:
        distance_T = np.concatenate(base_logprobs) - logprobs_T
        kl = float(np.mean(np.exp(distance_T) - distance_T - 1))
    return StepReport(
        step=step,
        loss=float(-gain_T.sum()),
        kl=kl,
        clip_fraction=float(is_clipped_T.mean()),
        entropy=float(-logprobs_T.mean()),
        grad_norm=learned.grad_norm,
        tokens=len(logprobs_T),
        seconds=seconds,
        used=len(lessons),
        skipped=dict(skipped),
    )
