"""A policy as a program sees it, and where the models answer that are not the policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Policy:
    """What is being trained, and where it answers.

    Address, key and model name stay the same as long as an endpoint lives; only the
    version moves, and is stamped on every completion.

    Example:
        >>> policy = Policy("http://127.0.0.1:8000/v1", "key", "policy", "try-1@0")
        >>> policy.version
        'try-1@0'
    """

    base_url: str
    api_key: str = field(repr=False)
    model: str
    version: str
    prompts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a program's other models answer: a judge, an outside model.

    Example:
        >>> Upstream("https://api.openai.com/v1", api_key="sk-…")
        Upstream(base_url='https://api.openai.com/v1')
    """

    base_url: str
    api_key: str = field(repr=False)
