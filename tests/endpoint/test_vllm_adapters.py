"""A policy's adapter goes to a vLLM server under a new name for each version, and versions never mix."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import openai
import pytest
from endpoint.vllm_like import VllmLike, serving

from tracetune.errors import EndpointError, InvalidInput, TracetuneWarning
from tracetune.trainers.endpoint import VllmEndpoint
from tracetune.types import Upstream

HELLO = [{"role": "user", "content": "w2 w3 w4"}]


def write_adapter(folder) -> None:
    """An adapter, as far as this server looks at it."""
    (folder / "adapter_config.json").write_text("{}")


@pytest.fixture
def server():
    """A server as vLLM is."""
    return VllmLike()


@pytest.fixture
def start(server, journal, tmp_path):
    """Starts an endpoint of an adapter, and gives it with its client."""
    with ExitStack() as stack:
        service = stack.enter_context(serving(server))

        def begin(**settings):
            settings = {"write_adapter": write_adapter, "adapter_folder": tmp_path / "adapters", **settings}
            endpoint = VllmEndpoint(service.upstream, version="try@0", journal=journal, **settings)
            stack.enter_context(endpoint)
            policy = endpoint.policy
            client = openai.OpenAI(base_url=policy.base_url, api_key=policy.api_key, max_retries=0)
            return endpoint, stack.enter_context(client)

        yield begin


def ask(client):
    """One chat completion."""
    return client.chat.completions.create(model="policy", messages=HELLO, max_tokens=3)


def test_each_version_is_loaded_asked_and_unloaded_under_its_own_name(start, server, journal, tmp_path):
    """The order of things over two steps and a stop; afterwards neither server nor disk holds an adapter."""
    endpoint, client = start()
    ask(client)
    (first,) = server.adapters
    assert endpoint.exclusively(lambda: endpoint.publish("try@1")) is None
    ask(client)
    (second,) = server.adapters
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [second]
    endpoint.stop()
    assert server.events == [
        ("load", first),
        ("sample", first),
        ("load", second),
        ("unload", first),
        ("sample", second),
        ("unload", second),
    ]
    assert (server.adapters, list((tmp_path / "adapters").iterdir())) == ({}, [])
    assert first.startswith("policy-")
    assert [record.policy_version for record in journal.completions] == ["try@0", "try@1"]


def test_an_adapter_is_unloaded_after_its_last_request(start, server):
    """A version that is published while the last one is being asked leaves that one loaded until it has answered."""
    reached, answered = threading.Event(), threading.Event()
    complete = server._complete

    def slowly(handler, body, *, is_chat):
        reached.set()
        assert answered.wait(30)
        complete(handler, body, is_chat=is_chat)

    server._complete = slowly
    endpoint, client = start()
    (first,) = server.adapters
    with ThreadPoolExecutor(2) as pool:
        asking = pool.submit(ask, client)
        assert reached.wait(30)
        publishing = pool.submit(endpoint.publish, "try@1")
        while endpoint.policy.version == "try@0":
            assert not publishing.done()
        with pytest.raises(TimeoutError):
            publishing.result(0.3)
        assert first in server.adapters
        assert endpoint.policy.version == "try@1"
        answered.set()
        assert asking.result(30).choices
        publishing.result(30)
    assert first not in server.adapters


def test_two_lives_of_a_run_do_not_share_names(start, server):
    """What an earlier life left in the server is not taken for the present one's."""
    start()
    start()
    assert len({name for event, name in server.events if event == "load"}) == 2


def test_a_server_that_takes_no_adapters_says_how_to_start_it(start, server, tmp_path):
    """Without runtime updating the server has no such address; no files stay."""
    server.is_dynamic = False
    with pytest.raises(EndpointError, match=r"--enable-lora and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        start()
    assert list((tmp_path / "adapters").iterdir()) == []


def test_a_refused_adapter_leaves_the_last_one_in_force(start, server, tmp_path):
    """The server's reason is in the error, and the policy goes on as it was."""
    writing = [write_adapter, lambda folder: None]
    endpoint, client = start(write_adapter=lambda folder: writing.pop(0)(folder))
    with pytest.raises(EndpointError, match=r"refused the adapter of try@1 with 404 \(.*No adapter found for .*rank"):
        endpoint.publish("try@1")
    assert endpoint.policy.version == "try@0"
    assert ask(client).choices
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == list(server.adapters)


def test_a_server_that_forgot_an_adapter_is_no_reason_to_stop(start, server):
    """Unloading what is not there warns, and the new version is in force."""
    endpoint, client = start()
    server.adapters.clear()
    with pytest.warns(TracetuneWarning, match="cannot be found"):
        endpoint.publish("try@1")
    assert endpoint.policy.version == "try@1"
    assert ask(client).choices


def test_a_server_that_is_not_there_is_named(journal, tmp_path):
    """An address at which nothing listens is named before anything is served."""
    upstream = Upstream("http://127.0.0.1:9/v1", api_key="k")
    settings = {"write_adapter": write_adapter, "adapter_folder": tmp_path, "version": "try@0", "journal": journal}
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:9/v1/load_lora_adapter could not be reached"):
        VllmEndpoint(upstream, **settings).start()


def test_an_adapter_is_its_owners_alone_unless_the_server_is_another_user(start, tmp_path):
    """By default nobody else reads it; with a group, that group does."""
    modes = []

    def write(folder) -> None:
        write_adapter(folder)
        (folder / "adapter_config.json").chmod(0o600)

    def seen(folder) -> list[str]:
        paths = [folder, *sorted(folder.rglob("*"))]
        return [oct(path.stat().st_mode & 0o777) for path in paths]

    start(write_adapter=write, adapter_folder=tmp_path / "mine")
    modes.append(seen(tmp_path / "mine"))
    start(write_adapter=write, adapter_folder=tmp_path / "shared", reader_group=os.getgid())
    modes.append(seen(tmp_path / "shared"))
    assert modes == [["0o700", "0o700", "0o600"], ["0o750", "0o750", "0o640"]]
    assert {path.stat().st_gid for path in (tmp_path / "shared").rglob("*")} == {os.getgid()}


def test_a_group_that_is_not_there_is_refused_at_once(start):
    """Not when the first adapter is written."""
    with pytest.raises(InvalidInput, match="there is no group 'nobody-has-this' of users"):
        start(reader_group="nobody-has-this")
