"""The front of an endpoint: an address, a key and names that stay, whatever answers behind them."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from starlette.applications import Starlette

from tracetune.errors import EndpointError, InvalidInput
from tracetune.http import RefuseForeign, Server
from tracetune.trainers.endpoint.door import Door
from tracetune.trainers.endpoint.forwarding import Forwarder
from tracetune.types import Policy, Sampling, Upstream

# Longer than a program thinks between two calls: a connection that is closed just as a
# client takes it up again costs that client a retry.
KEEP_ALIVE_SECONDS = 600
# How long a stop waits for clients that do not read their answers.
FAREWELL_SECONDS = 1


class Front(ABC):
    """Where programs find a policy.

    Attributes:
        sampling: while set, what it says (temperature, top_p, max_tokens, stop) goes over
            what programs ask, and their top_k and seed do not count; None: programs
            have what they ask for.
    """

    def __init__(
        self,
        *,
        name: str,
        sampling: Sampling | None,
        models: Mapping[str, str],
        forward: Upstream | None,
        host: str,
        port: int,
    ) -> None:
        """Prepare the front; `start`, or `with`, opens it.

        Args:
            name: the model name that programs ask for.
            sampling: see the attribute.
            models: names that programs have hard-coded, each mapped to `name`.
            forward: where requests for other models go; they are refused where it is None.
            host: the address to listen at.
            port: 0 takes a free one.

        Raises:
            InvalidInput: if a mapped name leads to another model.
        """
        for alias, target in models.items():
            if target != name:
                raise InvalidInput(
                    f"models maps {alias!r} to {target!r}, and the policy is called {name!r}; map it to that"
                )
        self.sampling = sampling
        self._name = name
        self._api_key = f"tt-{secrets.token_urlsafe(24)}"
        self._aliases = frozenset(models)
        self._forward = forward
        self._host = host
        self._server = Server(
            f"the endpoint of {name!r}",
            host,
            port,
            error=EndpointError,
            keep_alive_seconds=KEEP_ALIVE_SECONDS,
            farewell_seconds=FAREWELL_SECONDS,
        )

    @property
    @abstractmethod
    def version(self) -> str:
        """Of what answers; stamped on each completion as it begins."""

    @abstractmethod
    def stop(self) -> None:
        """Refuse what is not finished, and close the address."""

    @abstractmethod
    def _application(self, door: Door) -> Starlette:
        """What answers behind the door."""

    async def _farewell(self) -> None:  # noqa: B027  # optional: only what holds connections has any to let go
        """Let go of connections, in the server's loop, once it has stopped."""

    def start(self) -> Self:
        """Listen, and answer.

        Raises:
            EndpointError: if the address is taken, or the endpoint has been started before.
        """
        forwarder = Forwarder(self._forward) if self._forward is not None else None

        async def farewell() -> None:
            await self._farewell()
            if forwarder is not None:
                await forwarder.close()

        door = Door(self._name, self._api_key, self._aliases, forwarder)
        application = RefuseForeign(
            self._application(door), host=self._host, knows_secret=door.knows_key, refuse=door.refusal
        )
        self._server.start(application, farewell)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def policy(self) -> Policy:
        """The policy as programs see it.

        Raises:
            EndpointError: if the endpoint has not been started.
        """
        return Policy(f"{self._server.url}/v1", self._api_key, self._name, self.version)
