"""Members a step can learn from: exact tokens, an old log-probability for each, and a weight.

A batch comes as it was recorded. Here each member is made exact or left out with a
reason, and the counts that the loss divides by are taken over those that remain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from tracetune.trainers.local.loss import NORMALISATIONS, Counts
from tracetune.types import GroupBatch, Member


@dataclass(frozen=True, slots=True)
class TrainableMember:
    """One completion, with all that its tokens' losses need.

    Attributes:
        logprobs: when it was sampled; None where a trainer must compute its own.
        temperature: what logits are divided by.
        weight: of each of its tokens in the step's loss.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    temperature: float
    advantage: float
    weight: float = 0.0


Tokens = tuple[Sequence[int], Sequence[int]]
Tokenise = Callable[[Member], Tokens | None]


def trainable_members(
    batch: GroupBatch,
    *,
    loss: str,
    max_completion_length: int | None,
    vocabulary: int,
    longest: int | None,
    tokenise: Tokenise,
) -> tuple[list[TrainableMember], Counter[str]]:
    """The members of a batch that can be learned from, and how many cannot, by reason.

    Args:
        batch: groups, as the store gave them.
        loss: a name in `NORMALISATIONS`.
        max_completion_length: what dr_grpo divides by.
        vocabulary: how many tokens the model knows.
        longest: how many positions it has; None where there is no limit.
        tokenise: gives prompt and completion tokens of a member whose text alone is
            known, or None.

    Returns:
        The members in the batch's order, and the count of each reason: "no_tokens",
        "empty_prompt", "empty_completion", "unknown_token", "too_long", "no_advantage"
        (not a finite number).
    """
    skipped: Counter[str] = Counter()
    kept: list[list[tuple[Member, TrainableMember]]] = []
    for group in batch.groups:
        pairs = []
        for member in group.members:
            trainable = _trainable(member, vocabulary, longest, tokenise)
            if isinstance(trainable, str):
                skipped[trainable] += 1
            else:
                pairs.append((member, trainable))
        if pairs:
            kept.append(pairs)
    return _weighed(kept, batch.unit, NORMALISATIONS[loss], max_completion_length or 0), skipped


def has_something_to_learn(members: Sequence[TrainableMember], kl: float) -> bool:
    """Whether a step over these members would have a gradient at all."""
    return any(kl != 0.0 or member.advantage != 0.0 for member in members)


def chat_tokeniser(tokenizer: Any) -> Tokenise:
    """Tokenises members whose text alone is known, by the policy's own chat template.

    The completion ends with the end token where it stopped by itself. The tokens need
    not be those that were sampled, so their log-probabilities are always recomputed.
    """

    def tokenise(member: Member) -> Tokens | None:
        if not member.messages or not tokenizer.chat_template:
            return None
        try:
            prompt = tokenizer.apply_chat_template(list(member.messages), add_generation_prompt=True, tokenize=False)
        except TemplateError:  # the template refuses a role or an order that another model was fine with
            return None
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        completion_ids = tokenizer(member.text, add_special_tokens=False)["input_ids"]
        if member.finish_reason == "stop" and tokenizer.eos_token_id is not None:
            completion_ids = [*completion_ids, tokenizer.eos_token_id]
        return prompt_ids, completion_ids

    return tokenise


def _trainable(member: Member, vocabulary: int, longest: int | None, tokenise: Tokenise) -> TrainableMember | str:
    """The member with its tokens, or the reason why it has none."""
    if not math.isfinite(member.advantage):
        return "no_advantage"
    tokens = (member.prompt_ids, member.completion_ids) if member.is_exact else tokenise(member)
    if tokens is None or tokens[0] is None or tokens[1] is None:
        return "no_tokens"
    prompt_ids, completion_ids = tuple(map(int, tokens[0])), tuple(map(int, tokens[1]))
    if not prompt_ids:
        return "empty_prompt"
    if not completion_ids:
        return "empty_completion"
    if not all(0 <= token < vocabulary for token in (*prompt_ids, *completion_ids)):
        return "unknown_token"
    # The last token is predicted and never read, so it needs no position.
    if longest is not None and len(prompt_ids) + len(completion_ids) - 1 > longest:
        return "too_long"
    return TrainableMember(
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=_usable_logprobs(member, len(completion_ids)),
        # Greedy tokens have no temperature of their own.
        temperature=member.sampling.temperature or 1.0,
        advantage=float(member.advantage),
    )


def _usable_logprobs(member: Member, length: int) -> tuple[float, ...] | None:
    if not member.is_exact or not member.on_policy or member.logprobs is None or len(member.logprobs) != length:
        return None
    logprobs = tuple(map(float, member.logprobs))
    return logprobs if all(map(math.isfinite, logprobs)) else None


def _weighed(
    groups: Sequence[Sequence[tuple[Member, TrainableMember]]],
    unit: str,
    normalisation: Callable[[Counts], float],
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
            weighed.append(replace(trainable, weight=normalisation(counts)))
    return weighed
