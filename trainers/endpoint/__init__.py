"""The policy endpoint: a local model that OpenAI's clients can call while it is being trained."""

from tracetune.trainers.endpoint.forwarding import Upstream
from tracetune.trainers.endpoint.local import LocalEndpoint

__all__ = ["LocalEndpoint", "Upstream"]
