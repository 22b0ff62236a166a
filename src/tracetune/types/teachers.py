"""Other policies that a program's rollouts are also made with, for the one that is trained to learn from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tracetune.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PREFIX = "teacher:"


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model that makes a share of the training rollouts, in place of the policy.

    Attributes:
        name: what the store calls it; its rollouts have the policy version `teacher:<name>`.
        base_url: where it answers by OpenAI's protocol.
        api_key: what it is asked with.
        model: what it is called there.
        share: how much of each example's rollouts it makes, above 0 and below 1, rounded
            to whole rollouts.
        records_tokens: it returns token ids, as vLLM does, and they are those of the policy's
            tokenizer, so that its tokens and log-probabilities are recorded; of others the
            text is known.

    Example:
        >>> Teacher("big", "http://127.0.0.1:8000/v1", "key", "Qwen/Qwen3-32B", share=0.25).version
        'teacher:big'
    """

    name: str
    base_url: str
    api_key: str = field(repr=False)
    model: str
    share: float
    records_tokens: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == "policy":
            raise InvalidInput(
                f"a teacher's name is made of letters, digits, '.', '_' and '-', and is not 'policy': {self.name!r}"
            )
        if not self.base_url.startswith(("http://", "https://")):
            raise InvalidInput(f"the base_url of teacher {self.name!r} is {self.base_url!r}; give one with http(s)://")
        if not 0.0 < self.share < 1.0:
            raise InvalidInput(f"the share of teacher {self.name!r} is {self.share}; give one above 0 and below 1")

    @property
    def version(self) -> str:
        """What its rollouts and completions have as policy version."""
        return _PREFIX + self.name

    def rollouts_of(self, total: int) -> int:
        """How many of so many rollouts of an example it makes.

        Example:
            >>> Teacher("big", "http://127.0.0.1:8000/v1", "key", "m", share=0.25).rollouts_of(6)
            2
        """
        return int(self.share * total + 0.5)


def teacher_of(policy_version: str | None) -> str | None:
    """The name of the teacher that a policy version is of; None where it is the policy's own.

    Example:
        >>> teacher_of("teacher:big"), teacher_of("run-1@3")
        ('big', None)
    """
    if policy_version is None or not policy_version.startswith(_PREFIX):
        return None
    return policy_version.removeprefix(_PREFIX)


def checked_teachers(teachers: Sequence[Teacher], rollouts: int) -> tuple[Teacher, ...]:
    """The teachers of a run in which each example has so many rollouts.

    Raises:
        InvalidInput: if two share a name, one makes no rollout, or none is left to the policy.
    """
    names = [teacher.name for teacher in teachers]
    if len(set(names)) != len(names):
        raise InvalidInput(f"two teachers have the same name: {', '.join(sorted(names))}; give each its own")
    for teacher in teachers:
        if not teacher.rollouts_of(rollouts):
            raise InvalidInput(
                f"teacher {teacher.name!r} makes none of {rollouts} rollouts with a share of {teacher.share}; "
                "raise one of them"
            )
    if sum(teacher.rollouts_of(rollouts) for teacher in teachers) >= rollouts:
        raise InvalidInput(
            f"teachers make all {rollouts} rollouts of an example and leave none to the policy; lower their shares"
        )
    return tuple(teachers)
