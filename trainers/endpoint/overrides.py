"""How the tokens of a completion are drawn: what the program asks, under what is in force just now.

While a policy is trained, its rollouts are sampled as the training needs it, whatever their
program asks; while it is validated, as the program would have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tracetune.trainers.endpoint.problems import Problem
from tracetune.types import Sampling

_SAMPLING = ("temperature", "top_p", "top_k", "seed")
_LENGTHS = ("max_completion_tokens", "max_tokens")


def asked_of(values: Mapping[str, Any]) -> Sampling:
    """What a request's body says of sampling; None where it leaves that to whoever answers.

    Raises:
        Problem: if it makes no sense.
    """
    stop, top_k = values.get("stop"), values.get("top_k")
    try:
        return Sampling(
            temperature=values.get("temperature"),
            top_p=values.get("top_p"),
            top_k=None if top_k in (0, -1) else top_k,
            max_tokens=next((values[name] for name in _LENGTHS if values.get(name) is not None), None),
            seed=values.get("seed"),
            stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        )
    except (ValidationError, TypeError) as error:
        reason = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        name = str(reason["loc"][0]) if reason else "stop"
        why = reason["msg"] if reason else str(error)
        raise Problem(400, f"'{name}' can't be {values.get(name)!r:.60}: {why}", name, "invalid_value") from None


def with_defaults(sampling: Sampling) -> Sampling:
    """The same, with OpenAI's defaults where nothing was asked: the policy's whole distribution.

    Example:
        >>> with_defaults(Sampling(top_p=0.5))
        Sampling(temperature=1.0, top_p=0.5, top_k=None, max_tokens=None, seed=None, stop=(), constrained=False)
    """
    return sampling.model_copy(
        update={
            "temperature": 1.0 if sampling.temperature is None else sampling.temperature,
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        }
    )


def in_force(asked: Sampling, override: Sampling | None) -> Sampling:
    """What is in force where an override goes over what was asked.

    The program's top_k would leave the policy's distribution, and its seed would make every
    rollout of a group the same, so neither survives an override.

    Example:
        >>> in_force(Sampling(temperature=0.0, top_k=5, max_tokens=9), Sampling(temperature=1.0))
        Sampling(temperature=1.0, top_p=None, top_k=None, max_tokens=9, seed=None, stop=(), constrained=False)
    """
    if override is None:
        return asked
    return Sampling(
        temperature=asked.temperature if override.temperature is None else override.temperature,
        top_p=asked.top_p if override.top_p is None else override.top_p,
        top_k=override.top_k,
        max_tokens=asked.max_tokens if override.max_tokens is None else override.max_tokens,
        seed=override.seed,
        stop=override.stop or asked.stop,
    )


def with_sampling(body: Mapping[str, Any], sampling: Sampling) -> dict[str, Any]:
    """A request's body with this sampling in place of its own.

    Example:
        >>> with_sampling({"temperature": 0, "seed": 1, "max_tokens": 9}, Sampling(temperature=1.0, max_tokens=5))
        {'temperature': 1.0, 'max_tokens': 5}
    """
    changed = {name: value for name, value in body.items() if name not in (*_SAMPLING, *_LENGTHS, "stop")}
    changed |= {name: value for name in _SAMPLING if (value := getattr(sampling, name)) is not None}
    if sampling.max_tokens is not None:
        # Newer models refuse the older name, older services the newer one: the program knows whom it asks.
        name = next((name for name in _LENGTHS if body.get(name) is not None), "max_tokens")
        changed[name] = sampling.max_tokens
    if sampling.stop:
        changed["stop"] = list(sampling.stop)
    return changed
