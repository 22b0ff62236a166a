"""Task inputs and what is said of the outputs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracetune.errors import InvalidInput, InvalidReward


@dataclass(frozen=True, slots=True)
class Example:
    """One task input, with whatever the reward needs to judge the output.

    The program is called as `program(**inputs)`.

    Example:
        >>> Example(id="q1", inputs={"question": "2 + 2?"}, labels="4").id
        'q1'
    """

    id: str
    inputs: Mapping[str, Any]
    labels: Any = None

    @classmethod
    def of(cls, value: Example | Mapping[str, Any]) -> Example:
        """An example from a plain mapping: keys `inputs`, and optionally `id` and `labels`.

        A mapping without `inputs` is taken as the inputs themselves, its `labels` and
        `id` apart. An id that is not given is a hash of the inputs, so the same inputs
        always have the same id.

        Raises:
            InvalidInput: if the value is neither an example nor a mapping, or has no id
                and inputs that JSON cannot express.
        """
        if isinstance(value, Example):
            return value
        if not isinstance(value, Mapping):
            raise InvalidInput(f"an example is a tt.Example or a mapping, not {type(value).__name__}: {value!r:.80}")
        inputs = value.get("inputs")
        if inputs is None:
            inputs = {name: item for name, item in value.items() if name not in ("id", "labels")}
        if not isinstance(inputs, Mapping):
            raise InvalidInput(f"an example's inputs are a mapping of argument names to values, not {inputs!r:.80}")
        identity = value.get("id")
        if identity is None:
            try:
                canonical = json.dumps(inputs, sort_keys=True, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InvalidInput(f"inputs that JSON cannot express need an id of their own ({error})") from error
            identity = hashlib.sha256(canonical.encode()).hexdigest()[:16]
        return cls(str(identity), dict(inputs), value.get("labels"))


@dataclass(frozen=True, slots=True)
class Score:
    """A reward with more to say: feedback in words, and scores of single modules.

    Example:
        >>> Score(0.5, feedback="right title, wrong year", by_module={"search": 1.0}).value
        0.5
    """

    value: float
    feedback: str = ""
    by_module: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, value: object) -> Score:
        """A score from what a reward function gave.

        Raises:
            InvalidReward: if it is not a finite number, or a score of finite numbers.
        """
        score = value if isinstance(value, Score) else cls(_finite(value, "the reward"))
        return cls(
            _finite(score.value, "the reward"),
            score.feedback,
            {module: _finite(number, f"the reward of module {module!r}") for module, number in score.by_module.items()},
        )


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a policy did on a set of examples.

    Attributes:
        reward: the mean over the rollouts; one that failed counts `failure_reward` of
            the grouping, 0 unless it was changed, whatever the way in which it failed.
        rewards: one number for each rollout, in the examples' order.
        n: how many rollouts were made.
        failed: how many of them crashed, timed out or could not be parsed.
        policy_version: which policy it was.
    """

    reward: float
    rewards: tuple[float, ...]
    n: int
    failed: int
    policy_version: str


def _finite(value: object, what: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy scalars, Decimal and bool are numbers too
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidReward(f"{what} must be a number, not {value!r:.80} of type {type(value).__name__}") from error
    if isinstance(value, str) or not math.isfinite(number):
        raise InvalidReward(f"{what} must be a finite number, not {value!r:.80}")
    return number
