"""The policy endpoint: a local model that OpenAI's clients can call while it is being trained."""

from tracetune.trainers.endpoint.local import LocalEndpoint
from tracetune.types import Upstream

__all__ = ["LocalEndpoint", "Upstream"]
