"""The endpoint of a local model: an address that OpenAI's clients can call, and a trainer behind it."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

import torch
import uvicorn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracetune.errors import EndpointError, InvalidInput
from tracetune.trainers.endpoint.app import Service, application
from tracetune.trainers.endpoint.decoder import Decoder
from tracetune.trainers.endpoint.forwarding import Forwarder
from tracetune.trainers.endpoint.prompts import Prompts
from tracetune.trainers.endpoint.rows import Piece
from tracetune.types import Journal, Policy, Sampling, Upstream

T = TypeVar("T")

# Longer than a program thinks between two calls: a connection that is closed just as a
# client takes it up again costs that client a retry.
KEEP_ALIVE_SECONDS = 600
# How long a stop waits for clients that do not read their answers.
FAREWELL_SECONDS = 1


class LocalEndpoint:
    """Serves a local model as OpenAI's clients expect, and records the exact tokens of every choice.

    The model stays the caller's: a trainer changes its weights in `exclusively`, and
    says so with `publish`.

    Attributes:
        sampling: while set, what it says (temperature, top_p, max_tokens, stop) goes over
            what programs ask, and their top_k and seed do not count; None: programs
            have what they ask for.

    Example:
        >>> with LocalEndpoint(model, tokenizer, version="try-1@0", journal=journal) as endpoint:  # doctest: +SKIP
        ...     client = openai.OpenAI(base_url=endpoint.policy.base_url, api_key=endpoint.policy.api_key)
        ...     client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "Hello"}])
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str = "policy",
        version: str,
        journal: Journal,
        sampling: Sampling | None = None,
        models: Mapping[str, str] = {},
        forward: Upstream | None = None,
        max_rows: int = 64,
        threads: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare an endpoint; `start`, or `with`, opens it.

        Args:
            model: a causal language model with full attention, with or without adapters.
            tokenizer: its tokenizer; chat needs its chat template.
            name: the model name that programs ask for.
            version: the version of the weights, stamped on each completion.
            journal: gets each finished choice before its client does.
            sampling: see the attribute.
            models: names that programs have hard-coded, each mapped to `name`.
            forward: where requests for other models go; they are refused where it is None.
            max_rows: how many choices are decoded at once; others wait.
            threads: how many threads torch uses; by default as many as it does here.
            host: the address to listen at.
            port: 0 takes a free one.

        Raises:
            InvalidInput: if a mapped name leads to another model, or a number makes no sense.
            EndpointError: if the model has layers that this endpoint can't decode.
        """
        for alias, target in models.items():
            if target != name:
                raise InvalidInput(
                    f"models maps {alias!r} to {target!r}, and the policy is called {name!r}; map it to that"
                )
        if max_rows < 1:
            raise InvalidInput(f"max_rows is {max_rows}; at least 1 row must be decoded at once")
        self.sampling = sampling
        self._name = name
        self._api_key = f"tt-{secrets.token_urlsafe(24)}"
        self._aliases = frozenset(models)
        self._forward = forward
        self._host, self._port = host, port
        self._prompts = Prompts(model, tokenizer)
        self._decoder = Decoder(
            model,
            tokenizer,
            version=version,
            journal=journal,
            max_rows=max_rows,
            threads=threads or torch.get_num_threads(),
            post=self._post,
        )
        self._socket: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> LocalEndpoint:
        """Listen, and answer.

        Raises:
            EndpointError: if the address is taken, or the endpoint has been started before.
        """
        if self._thread is not None:
            raise EndpointError(f"the endpoint of {self._name!r} has been started before; make a new one")
        self._socket = _listening(self._host, self._port)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), name="tracetune-endpoint", daemon=True)
        self._thread.start()
        ready.wait()
        self._decoder.start()
        return self

    def stop(self) -> None:
        """Refuse what is not finished, record it as cancelled, and close the address."""
        if self._thread is None or self._server is None or self._server.should_exit:
            return
        self._decoder.stop()
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> LocalEndpoint:
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
        if self._socket is None:
            raise EndpointError(f"the endpoint of {self._name!r} has no address yet; start it first")
        return Policy(f"http://{self._host}:{self._port}/v1", self._api_key, self._name, self._decoder.version)

    @property
    def completions_served(self) -> int:
        """How many choices have been finished and recorded."""
        return self._decoder.completions_served

    def publish(self, version: str) -> None:
        """Stamp this version on every completion that begins from now on."""
        self._decoder.version = version

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Have the model to oneself, to train it: requests wait meanwhile, none is cut short.

        Inside, the model's modules are in the mode (train or eval) that their owner left them in.
        """
        with self._decoder.exclusive():
            yield

    def exclusively(self, work: Callable[[], T]) -> T:
        """What `work` gives, run in the decode thread inside `exclusive()`: the way to train.

        Torch computes at half its speed in a second thread, so training is done where
        decoding is.
        """
        return self._decoder.exclusively(work)

    def _post(self, pieces: list[Piece]) -> None:
        assert self._loop is not None  # rows come by way of the loop
        self._loop.call_soon_threadsafe(_hand_out, pieces)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.run(self._serving(ready))

    async def _serving(self, ready: threading.Event) -> None:
        assert self._socket is not None
        self._loop = asyncio.get_running_loop()
        self._port = self._socket.getsockname()[1]
        forwarder = Forwarder(self._forward) if self._forward is not None else None
        service = Service(
            name=self._name,
            api_key=self._api_key,
            aliases=self._aliases,
            prompts=self._prompts,
            submit=self._decoder.submit,
            sampling=lambda: self.sampling,
            forwarder=forwarder,
        )
        config = uvicorn.Config(
            application(service),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=FAREWELL_SECONDS,
            server_header=False,
            date_header=False,
        )
        self._server = uvicorn.Server(config)
        ready.set()
        await self._server.serve(sockets=[self._socket])
        if forwarder is not None:
            await forwarder.close()


def _hand_out(pieces: list[Piece]) -> None:
    for piece in pieces:
        piece.row.receive(piece)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is named: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise EndpointError(
            f"the endpoint can't listen at {host}:{port}: {error.strerror}; choose another port"
        ) from None
    return listener
