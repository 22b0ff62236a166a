"""Penalties: what a rollout did too much of, as numbers to take from its reward."""

from __future__ import annotations

import json
from collections.abc import Callable

from tracetune.errors import InvalidInput
from tracetune.types import Rollout


def tool_penalty(rollout: Rollout, *, budget: int, each: float = 0.1) -> float:
    """What the tool calls beyond a budget cost: `each` for each.

    Args:
        rollout: with its calls, as reward functions get it.
        budget: how many tool calls are free.
        each: what one more costs.

    Raises:
        InvalidInput: if the budget or the cost is negative.

    Example:
        >>> tool_penalty(Rollout(id="r1", example_id="q1"), budget=3)
        0.0
    """
    if budget < 0 or each < 0:
        raise InvalidInput(f"a tool penalty has a budget and a cost of at least 0, not {budget} and {each}")
    return each * max(0, tool_call_count(rollout) - budget)


def tool_call_count(rollout: Rollout) -> int:
    """How many tool calls a rollout's prompts hold the results of, each counted once.

    A tool's result stands in the prompt of every later turn, so results that are equal,
    their ids included, are one; those without an id are one if they stand at the same
    place. A last call whose result was put to no model is not known, and not counted.

    Example:
        >>> from tracetune.types import Call
        >>> asked = {"role": "user", "content": "2 + 2?"}
        >>> result = {"role": "tool", "tool_call_id": "a", "content": "4"}
        >>> calls = [Call("c1", "r1", "m", messages=[asked]), Call("c2", "r1", "m", messages=[asked, result])]
        >>> tool_call_count(Rollout(id="r1", example_id="q1", calls=calls))
        1
    """
    return len(
        {
            (None if message.get("tool_call_id") else place, json.dumps(message, sort_keys=True, default=repr))
            for call in rollout.calls
            for place, message in enumerate(call.messages)
            if message.get("role") in ("tool", "function")
        }
    )


def length_penalty(text: str | Rollout, *, target: int, limit: int, count: Callable[[str], int] = len) -> float:
    """0 up to a target length, 1 from a limit on, and a straight line between.

    Args:
        text: a text, or a rollout, whose completions are counted together.
        target: the longest that costs nothing.
        limit: where the penalty is whole.
        count: how long a text is: in characters, unless told otherwise; in tokens with
            `lambda text: len(tokenizer.encode(text))`.

    Raises:
        InvalidInput: if the limit does not lie above the target.

    Example:
        >>> [length_penalty("x" * length, target=100, limit=200) for length in (80, 150, 900)]
        [0.0, 0.5, 1.0]

    Reference:
        DAPO (arXiv 2503.14476), Eq. 13, with the sign of a cost.
    """
    if not 0 <= target < limit:
        raise InvalidInput(
            f"a length penalty rises from target to limit, so 0 <= target < limit, not {target}, {limit}"
        )
    texts = [text] if isinstance(text, str) else [call.completion for call in text.calls]
    excess = sum(map(count, texts)) - target
    return min(1.0, max(0.0, excess / (limit - target)))
