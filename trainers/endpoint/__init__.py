"""The policy endpoint: what OpenAI's clients call while a policy is trained, be it a model here or a service.

The names load when they are first used: a policy that answers elsewhere needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tracetune.types import Upstream

if TYPE_CHECKING:
    from tracetune.trainers.endpoint.local import LocalEndpoint
    from tracetune.trainers.endpoint.proxy import ProxyEndpoint
    from tracetune.trainers.endpoint.vllm import VllmEndpoint

__all__ = ["LocalEndpoint", "ProxyEndpoint", "Upstream", "VllmEndpoint"]

_HOMES = {"LocalEndpoint": "local", "ProxyEndpoint": "proxy", "VllmEndpoint": "vllm"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # the next look-up does not come here
    return value
