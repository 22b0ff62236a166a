"""Batches of groups that no store was needed for: the same seed gives the same ones to every trainer."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

from tracetune.types import Group, GroupBatch, Member, Sampling

WORDS = ("red", "green", "blue", "one", "two", "three", "north", "south")
"""What scripted prompts and completions say, unless a test has words of its own."""


def scripted_batch(
    *,
    seed: int = 0,
    sizes: Sequence[int] = (4, 3),
    tokens: Sequence[int] = range(5, 30),
    logprob: float = -3.0,
    words: Sequence[str] = WORDS,
    policy_version: str = "conformance@0",
    constant: bool = False,
) -> GroupBatch:
    """Groups of exact members, with the advantages that rewards from 0 to 1 have in their groups.

    Args:
        seed: of the tokens, words and rewards.
        sizes: how many members each group has; a group of one has advantage 0.
        tokens: ids that prompts and completions are made of.
        logprob: what a completion token's log-probability is on average.
        words: what messages and texts are made of.
        policy_version: which policy is said to have sampled them.
        constant: every member earns the same, so that nothing can be learned.

    Example:
        >>> [len(group.members) for group in scripted_batch(sizes=(4, 1))]
        [4, 1]
        >>> scripted_batch(seed=3) == scripted_batch(seed=3)
        True
    """
    drawn = random.Random(seed)  # noqa: S311  tokens of a test, not a secret
    groups = []
    for number, size in enumerate(sizes):
        prompt_ids = drawn.choices(tokens, k=4)
        message = {"role": "user", "content": " ".join(drawn.choices(words, k=4))}
        rewards = [0.5] * size if constant else [place / max(1, size - 1) for place in range(size)]
        drawn.shuffle(rewards)
        members = []
        for place, (reward, advantage) in enumerate(zip(rewards, grpo_advantages(rewards), strict=True)):
            completion_ids = drawn.choices(tokens, k=drawn.randint(1, 4))
            members.append(
                Member(
                    call_id=f"call-{seed}-{number}-{place}",
                    rollout_id=f"rollout-{seed}-{number}-{place}",
                    module="answer",
                    messages=(message,),
                    prompt_ids=tuple(prompt_ids),
                    completion_ids=tuple(completion_ids),
                    logprobs=tuple(logprob + drawn.uniform(-0.5, 0.5) for _ in completion_ids),
                    text=" ".join(drawn.choices(words, k=len(completion_ids))),
                    finish_reason="stop",
                    sampling=Sampling(temperature=1.0),
                    policy_version=policy_version,
                    reward=reward,
                    advantage=advantage,
                    trajectory=place,
                )
            )
        groups.append(Group({"run": "conformance", "example_id": f"e{number}", "module": "answer"}, members))
    return GroupBatch(groups)


def without_tokens(batch: GroupBatch) -> GroupBatch:
    """The batch as a log of texts would have it: no tokens, no log-probabilities."""
    return GroupBatch(
        [
            replace(
                group,
                members=[
                    replace(member, prompt_ids=None, completion_ids=None, logprobs=None, on_policy=False)
                    for member in group.members
                ],
            )
            for group in batch
        ],
        unit=batch.unit,
    )


def grpo_advantages(rewards: Sequence[float], eps: float = 1e-4) -> list[float]:
    """(r - mean) / (std + eps) of each, with the sample's standard deviation; 0 in a group of one.

    Example:
        >>> [round(advantage, 3) for advantage in grpo_advantages([0.0, 1.0])]
        [-0.707, 0.707]
    """
    if len(rewards) < 2:
        return [0.0] * len(rewards)
    mean, deviation = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (deviation + eps) for reward in rewards]
