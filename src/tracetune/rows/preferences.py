"""Preference rows: of two completions of one prompt, the one that was worth more.

What is compared must differ in the completion alone, so only members of one group whose
prompts are identical are paired. Where later invocations of a program follow from what
earlier ones gave, few are; what found no partner is counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tracetune.errors import InvalidInput
from tracetune.rows.messages import Rows, Sample, completion_of, prompt_of, rows_of, samples_of
from tracetune.types import GroupBatch, Member

Form = Literal["openai", "trl"]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A completion, and the mean reward of those that sampled it."""

    sample: Sample
    reward: float


def preference_rows(batch: GroupBatch, *, margin: float = 0.0, form: Form = "openai") -> Rows:
    """Pairs of completions to one prompt, better against worse.

    Of the members of a group that share a prompt, the best is paired with the worst, the
    second best with the second worst, and so on while their rewards differ by the
    margin: each completion is in one pair at most. A completion that was sampled several
    times is one, and has their mean reward.

    Args:
        batch: the groups.
        margin: how much the rewards must differ, at least; equal ones never pair.
        form: "openai", as OpenAI's fine-tuning takes them: `input`, `preferred_output`,
            `non_preferred_output`; or "trl", as `DPOTrainer` does: `prompt`, `chosen`,
            `rejected`.

    Raises:
        InvalidInput: if `form` is none of these, or a message is no JSON.

    Example:
        >>> preference_rows(batch, margin=0.5, form="trl").rows  # doctest: +SKIP
        [{'prompt': [{'role': 'user', 'content': '2 + 2?'}],
          'chosen': [{'role': 'assistant', 'content': '4'}],
          'rejected': [{'role': 'assistant', 'content': '5'}]}]
    """
    if form not in ("openai", "trl"):
        raise InvalidInput(f'form is "openai" or "trl", not {form!r}')
    skipped: Counter[str] = Counter()
    pairs: dict[tuple[str, str, str], tuple[Member, Member]] = {}
    for group in batch:
        by_prompt: dict[str, list[Sample]] = {}
        for sample in samples_of(group.members, skipped):
            by_prompt.setdefault(sample.prompt, []).append(sample)
        for samples in by_prompt.values():
            for better, worse in _pairs(_candidates(samples, skipped), margin, skipped):
                identity = better.sample.prompt, better.sample.completion, worse.sample.completion
                if identity in pairs:
                    skipped["duplicate"] += 2
                pairs.setdefault(identity, (better.sample.member, worse.sample.member))
    return rows_of([_row(better, worse, form) for better, worse in pairs.values()], skipped)


def _candidates(samples: list[Sample], skipped: Counter[str]) -> list[_Candidate]:
    """The completions of one prompt, the best first; of equal rewards the earlier."""
    alike: dict[str, list[Sample]] = {}
    for sample in samples:
        alike.setdefault(sample.completion, []).append(sample)
    candidates = []
    for same in alike.values():
        skipped["duplicate"] += len(same) - 1
        reward = math.fsum(sample.member.reward for sample in same) / len(same)
        candidates.append(_Candidate(same[0], reward))
    return sorted(candidates, key=lambda candidate: -candidate.reward)


def _pairs(candidates: list[_Candidate], margin: float, skipped: Counter[str]) -> list[tuple[_Candidate, _Candidate]]:
    if len(candidates) == 1:
        skipped["no_partner"] += 1
        return []
    half = len(candidates) // 2
    skipped["odd"] += len(candidates) % 2
    pairs = []
    for better, worse in zip(candidates[:half], reversed(candidates[-half:]), strict=True):
        difference = better.reward - worse.reward
        if difference > 0 and difference >= margin:
            pairs.append((better, worse))
        else:
            skipped["too_close"] += 2
    return pairs


def _row(better: Member, worse: Member, form: Form) -> Mapping[str, Any]:
    prompt, chosen, rejected = prompt_of(better), [completion_of(better)], [completion_of(worse)]
    if form == "trl":
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {"input": {"messages": prompt}, "preferred_output": chosen, "non_preferred_output": rejected}
