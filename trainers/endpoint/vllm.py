"""The endpoint of a policy that vLLM samples from while a trainer elsewhere on the machine learns.

The server holds the base model. The adapter goes to it as files, under a new name for each
version, so that no completion and no cached prefix mixes two of them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from tracetune.errors import EndpointError, InvalidInput, TracetuneWarning
from tracetune.files import make_folder
from tracetune.trainers.endpoint.proxy import ProxyEndpoint
from tracetune.types import Journal, Sampling, Upstream

# Loading an adapter of a large model takes a while.
_SECONDS = 600.0
# Its owner writes, its group reads.
_READ_FOLDER = 0o750
_READ_FILE = 0o640


class VllmEndpoint(ProxyEndpoint):
    """Serves an adapter through a vLLM server, and records the exact tokens of every choice.

    The server runs with `--enable-lora`, `--logprobs-mode processed_logprobs` and
    `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`, and reads files where this process writes them.

    Example:
        >>> VllmEndpoint(
        ...     Upstream("http://127.0.0.1:8000/v1", api_key="EMPTY"),
        ...     write_adapter=trainer.save, adapter_folder=Path("/tmp/adapters"), version="try-1@0", journal=journal,
        ... )  # doctest: +SKIP
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        write_adapter: Callable[[Path], None],
        adapter_folder: Path,
        reader_group: str | int | None = None,
        name: str = "policy",
        version: str,
        journal: Journal,
        sampling: Sampling | None = None,
        models: Mapping[str, str] = {},
        forward: Upstream | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        """Prepare an endpoint; `start`, or `with`, loads the adapter and opens it.

        Args:
            upstream: the server.
            write_adapter: writes the adapter as it is at the moment into an empty folder, as
                peft reads it: a trainer's `save`.
            adapter_folder: where the server finds it; each version has a folder of its own there.
            reader_group: the group of users, by name or number, that the server runs under, where it
                runs under another user: it may then read the adapters, which are otherwise this user's alone.
            name: as for any endpoint, and what the adapter's names begin with.
            version: of the policy.
            journal: where tokens are recorded.
            sampling: goes over what programs ask, while it is set.
            models: names that programs have hard-coded, each mapped to `name`.
            forward: where requests for other models go; they are refused where it is None.
            host: the address to listen at.
            port: 0 takes a free one.

        Raises:
            InvalidInput: if a mapped name leads to another model, the upstream has no address, or there is no
                such group.
        """
        group_id = None if reader_group is None else _group_id(reader_group)
        super().__init__(
            upstream,
            upstream_model="",
            name=name,
            version=version,
            journal=journal,
            sampling=sampling,
            models=models,
            forward=forward,
            records_tokens=True,
            host=host,
            port=port,
        )
        self._adapters = _Adapters(upstream, write_adapter, adapter_folder.absolute(), name, group_id)

    def start(self) -> Self:
        """Have the server load the adapter, then listen, and answer.

        Raises:
            EndpointError: if the server does not load it, the address is taken, or the endpoint has
                been started before.
        """
        super().start()
        try:
            super().publish(self.version, self._adapters.load(self.version))
        except BaseException:
            super().stop()
            raise
        return self

    def stop(self) -> None:
        """Cut short what is not finished, close the address, and have the server forget the adapter."""
        if self._server.is_running:
            super().stop()
            self._adapters.unload(self._relay.serving.model)

    def publish(self, version: str, upstream_model: str | None = None) -> None:
        """From now on the policy is the adapter as it is now; the last one goes after its last request.

        Args:
            version: of the policy.
            upstream_model: the name of an adapter that the server has already, in place of this one.

        Raises:
            EndpointError: if the server does not load the adapter; the last one stays in force then.
        """
        before = self._relay.serving.model
        super().publish(version, upstream_model or self._adapters.load(version))
        self._relay.usage.wait_until_unused(before)
        self._adapters.unload(before)


@dataclass
class _Adapters:
    """The adapters that the server was given."""

    upstream: Upstream
    write: Callable[[Path], None]
    folder: Path
    name: str
    group_id: int | None

    def __post_init__(self) -> None:
        # A server outlives trainers, and caches by name: a resumed run must not find what an earlier one left.
        self._life = secrets.token_hex(4)
        self._loaded: dict[str, Path] = {}
        self._number = 0

    def load(self, version: str) -> str:
        """Write the adapter and have the server load it; gives its name there.

        Raises:
            EndpointError: if it does not.
        """
        name = f"{self.name}-{self._life}-{self._number}"
        self._number += 1
        place = self.folder / name
        is_new = not self.folder.exists()
        make_folder(place)
        try:
            self.write(place)
            self._share([*([self.folder] if is_new else []), place, *place.rglob("*")])
            self._ask("load_lora_adapter", f"the adapter of {version}", lora_name=name, lora_path=str(place))
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        self._loaded[name] = place
        return name

    def _share(self, paths: Iterable[Path]) -> None:
        """Let the server's group read them."""
        if self.group_id is None:
            return
        for path in paths:
            try:
                os.chown(path, -1, self.group_id)
            except PermissionError as error:
                raise EndpointError(
                    f"{path} can't be given to group {self.group_id} ({error.strerror}); run as a member of the group "
                    "that the vLLM server runs under"
                ) from error
            path.chmod(_READ_FOLDER if path.is_dir() else _READ_FILE)

    def unload(self, name: str) -> None:
        """Have the server forget an adapter that was loaded here, and remove its files."""
        place = self._loaded.pop(name, None)
        if place is None:
            return
        try:
            self._ask("unload_lora_adapter", f"the adapter {name}", lora_name=name)
        except EndpointError as error:
            warnings.warn(str(error), TracetuneWarning, stacklevel=2)
        shutil.rmtree(place, ignore_errors=True)

    def _ask(self, verb: str, what: str, **body: Any) -> None:
        address = f"{self.upstream.base_url.rstrip('/')}/{verb}"
        headers = {"authorization": f"Bearer {self.upstream.api_key}"}
        try:
            answer = httpx.post(address, json=body, headers=headers, timeout=_SECONDS)
        except httpx.HTTPError as error:
            raise EndpointError(
                f"{address} could not be reached for {what} ({type(error).__name__}: {error}); start the vLLM server"
            ) from error
        if answer.is_success:
            return
        reason = _reason(answer)
        if reason is None and answer.status_code == 404:
            raise EndpointError(
                f"{address} is not there for {what}; start the vLLM server with --enable-lora and with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
            )
        raise EndpointError(
            f"{address} refused {what} with {answer.status_code} ({reason or answer.text[:200]}); see that the server "
            "can read its folder, and that --max-lora-rank is at least its rank"
        )


def _group_id(group: str | int) -> int:
    if isinstance(group, int):
        return group
    import grp  # not on every system

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise InvalidInput(f"there is no group {group!r} of users; give the vLLM server's, by name or number") from None


def _reason(answer: httpx.Response) -> str | None:
    """What the server says is wrong, where it says it as vLLM does."""
    try:
        error = answer.json()["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        return None
