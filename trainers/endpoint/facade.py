"""The facade: an address that OpenAI's clients can call, in front of an engine that speaks tokens.

The engine may be a model on this machine or a service elsewhere; clients cannot tell. It
gets rows, one for each choice, and hands their pieces back as they are sampled.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from tracetune.errors import InvalidInput
from tracetune.trainers.endpoint.app import Service, application
from tracetune.trainers.endpoint.forwarding import Forwarder
from tracetune.trainers.endpoint.prompts import Prompts
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.trainers.endpoint.server import Server
from tracetune.types import Policy, Sampling, Upstream

T = TypeVar("T")


class Engine(Protocol):
    """Samples the tokens of rows.

    Attributes:
        version: of the weights; stamped on each row as it begins.
        completions_served: how many rows it has finished and recorded.
    """

    version: str
    completions_served: int

    def start(self, post: Callable[[list[Piece]], None]) -> None:
        """Begin to sample; `post` hands pieces to whoever asked, from any thread."""

    def stop(self) -> None:
        """Refuse what is not finished, and record it as cancelled."""

    def submit(self, rows: Sequence[Row]) -> None:
        """Take rows; raises `Problem` when it has been stopped."""

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run while nothing is sampled, so that weights may change."""


class Facade:
    """Speaks OpenAI's protocol for an engine.

    Attributes:
        sampling: while set, what it says (temperature, top_p, max_tokens, stop) goes over
            what programs ask, and their top_k and seed do not count; None: programs
            have what they ask for.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        *,
        name: str = "policy",
        sampling: Sampling | None = None,
        models: Mapping[str, str] = {},
        forward: Upstream | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare a facade; `start`, or `with`, opens it.

        Args:
            engine: who samples.
            prompts: makes tokens of what clients send.
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
        self._engine = engine
        self._prompts = prompts
        self._name = name
        self._api_key = f"tt-{secrets.token_urlsafe(24)}"
        self._aliases = frozenset(models)
        self._forward = forward
        self._server = Server(name, host, port)

    def start(self) -> Self:
        """Listen, and answer.

        Raises:
            EndpointError: if the address is taken, or the endpoint has been started before.
        """
        forwarder = Forwarder(self._forward) if self._forward is not None else None
        service = Service(
            name=self._name,
            api_key=self._api_key,
            aliases=self._aliases,
            prompts=self._prompts,
            submit=self._engine.submit,
            sampling=lambda: self.sampling,
            forwarder=forwarder,
        )
        self._server.start(application(service), None if forwarder is None else forwarder.close)
        self._engine.start(self._post)
        return self

    def stop(self) -> None:
        """Refuse what is not finished, record it as cancelled, and close the address."""
        if self._server.is_running:
            self._engine.stop()
            self._server.stop()

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
        return Policy(self._server.base_url, self._api_key, self._name, self._engine.version)

    @property
    def completions_served(self) -> int:
        """How many choices have been finished and recorded."""
        return self._engine.completions_served

    def publish(self, version: str) -> None:
        """Stamp this version on every completion that begins from now on."""
        self._engine.version = version

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run while nothing is sampled: requests wait meanwhile, none is cut short."""
        return self._engine.exclusively(work)

    def _post(self, pieces: list[Piece]) -> None:
        self._server.soon(_hand_out, pieces)


def _hand_out(pieces: list[Piece]) -> None:
    for piece in pieces:
        piece.row.receive(piece)
