"""The endpoint of a policy that answers elsewhere: a service that trains it, or a server on a GPU.

Programs find it as they find any policy, at an address, a key and a name that stay. Which
of the service's models the policy is at the moment is this endpoint's to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from starlette.applications import Starlette

from tracetune.errors import InvalidInput
from tracetune.trainers.endpoint.door import Door
from tracetune.trainers.endpoint.front import Front
from tracetune.trainers.endpoint.relay import Relay, Serving
from tracetune.types import Journal, Sampling, Upstream

T = TypeVar("T")


class ProxyEndpoint(Front):
    """Stands in front of a service that speaks OpenAI's protocol, and gives its model the policy's name.

    Requests for the policy go to the upstream with its own name for the model and with
    `sampling` over what they ask; answers come back as they are. With `records_tokens` each
    choice is in the journal, token by token, before its client sees its end; nothing is
    recorded otherwise, and the store knows the program's own trace of its texts.

    Example:
        >>> upstream = Upstream("https://api.openai.com/v1", api_key="sk-…")
        >>> endpoint = ProxyEndpoint(upstream, upstream_model="gpt-4.1-mini", version="try-1@0", journal=journal)
        ... # doctest: +SKIP
        >>> with endpoint:  # doctest: +SKIP
        ...     client = openai.OpenAI(base_url=endpoint.policy.base_url, api_key=endpoint.policy.api_key)
        ...     client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hello"}])
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        upstream_model: str,
        name: str = "policy",
        version: str,
        journal: Journal,
        sampling: Sampling | None = None,
        models: Mapping[str, str] = {},
        forward: Upstream | None = None,
        records_tokens: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare an endpoint; `start`, or `with`, opens it.

        Args:
            upstream: where the policy answers.
            upstream_model: what it is called there.
            name: the model name that programs ask for.
            version: of the policy.
            journal: where tokens are recorded.
            sampling: goes over what programs ask, while it is set.
            models: names that programs have hard-coded, each mapped to `name`.
            forward: where requests for other models go; they are refused where it is None.
            records_tokens: have the upstream return the tokens that it samples, as vLLM does,
                and record them; see `docs/vllm.md`.
            host: the address to listen at.
            port: 0 takes a free one.

        Raises:
            InvalidInput: if a mapped name leads to another model, or the upstream has no address.
        """
        super().__init__(name=name, sampling=sampling, models=models, forward=forward, host=host, port=port)
        if not upstream.base_url.startswith(("http://", "https://")):
            raise InvalidInput(
                f"the upstream's base_url is {upstream.base_url!r}; give one like http://127.0.0.1:8000/v1"
            )
        serving = Serving(upstream_model, version)
        self._relay = Relay(upstream, serving, lambda: self.sampling, journal if records_tokens else None)

    def stop(self) -> None:
        """Cut short what is not finished, and close the address."""
        if self._server.is_running:
            self._server.soon(self._relay.stop)
            self._server.stop()

    @property
    def version(self) -> str:
        """Of the policy."""
        return self._relay.serving.version

    @property
    def requests_received(self) -> int:
        """How many requests for the policy have come, whatever became of them."""
        return self._relay.requests_received

    @property
    def completions_served(self) -> int:
        """How many choices have been answered to the end."""
        return self._relay.completions_served

    def publish(self, version: str, upstream_model: str | None = None) -> None:
        """From now on the policy is of this version, and of that name at the upstream where it has a new one."""
        self._relay.serving = Serving(upstream_model or self._relay.serving.model, version)

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run while no request is under way: new ones wait meanwhile, none is cut short."""
        return self._relay.gate.exclusively(work)

    def _application(self, door: Door) -> Starlette:
        return self._relay.application(door)

    async def _farewell(self) -> None:
        await self._relay.close()
