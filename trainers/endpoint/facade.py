"""The facade: an address that OpenAI's clients can call, in front of an engine that speaks tokens.

The engine may be a model on this machine or a service elsewhere; clients cannot tell. It
gets rows, one for each choice, and hands their pieces back as they are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, Self, TypeVar

from starlette.applications import Starlette

from tracetune.trainers.endpoint.app import Service, application
from tracetune.trainers.endpoint.door import Door
from tracetune.trainers.endpoint.front import Front
from tracetune.trainers.endpoint.grammars import Grammars
from tracetune.trainers.endpoint.prompts import Prompts
from tracetune.trainers.endpoint.rows import Piece, Row
from tracetune.types import Sampling, Upstream

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


class Facade(Front):
    """Speaks OpenAI's protocol for an engine."""

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        *,
        name: str = "policy",
        sampling: Sampling | None = None,
        models: Mapping[str, str] = {},
        forward: Upstream | None = None,
        grammars: Grammars | None = None,
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
            grammars: makes answers be JSON of a schema, where the engine minds the
                constraint of a row; None: such requests are refused.
            host: the address to listen at.
            port: 0 takes a free one.

        Raises:
            InvalidInput: if a mapped name leads to another model.
        """
        super().__init__(name=name, sampling=sampling, models=models, forward=forward, host=host, port=port)
        self._engine = engine
        self._prompts = prompts
        self._grammars = grammars

    def start(self) -> Self:
        """Listen, and answer.

        Raises:
            EndpointError: if the address is taken, or the endpoint has been started before.
        """
        super().start()
        self._engine.start(self._post)
        return self

    def stop(self) -> None:
        """Refuse what is not finished, record it as cancelled, and close the address."""
        if self._server.is_running:
            self._engine.stop()
            self._server.stop()

    @property
    def version(self) -> str:
        """Of the weights."""
        return self._engine.version

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

    def _application(self, door: Door) -> Starlette:
        return application(Service(door, self._prompts, self._engine.submit, lambda: self.sampling, self._grammars))

    def _post(self, pieces: list[Piece]) -> None:
        self._server.soon(_hand_out, pieces)


def _hand_out(pieces: list[Piece]) -> None:
    for piece in pieces:
        piece.row.receive(piece)
