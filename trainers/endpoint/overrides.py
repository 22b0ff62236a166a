"""How the tokens of a completion are drawn: what the program asks, under what is in force just now.

While a policy is trained, its rollouts are sampled as the training needs it, whatever their
program asks; while it is validated, as the program would have it.
"""

from __future__ import annotations

from tracetune.trainers.endpoint.requests import Body
from tracetune.types import Sampling


def asked_sampling(body: Body, max_tokens: int | None) -> Sampling:
    """What a request asks for; None where it leaves something to whoever answers."""
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k if body.top_k is not None and body.top_k > 0 else None,
        max_tokens=max_tokens,
        seed=body.seed,
        stop=body.stop_strings,
    )


def with_defaults(sampling: Sampling) -> Sampling:
    """The same, with OpenAI's defaults where nothing was asked: the policy's whole distribution.

    Example:
        >>> with_defaults(Sampling(top_p=0.5))
        Sampling(temperature=1.0, top_p=0.5, top_k=None, max_tokens=None, seed=None, stop=())
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
        Sampling(temperature=1.0, top_p=None, top_k=None, max_tokens=9, seed=None, stop=())
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
