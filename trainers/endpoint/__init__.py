"""The policy endpoint: what OpenAI's clients call while a policy is trained, be it a model here or a service."""

from tracetune.trainers.endpoint.local import LocalEndpoint
from tracetune.trainers.endpoint.proxy import ProxyEndpoint
from tracetune.trainers.endpoint.vllm import VllmEndpoint
from tracetune.types import Upstream

__all__ = ["LocalEndpoint", "ProxyEndpoint", "Upstream", "VllmEndpoint"]
