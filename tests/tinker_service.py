"""A service on loopback that speaks Tinker's protocol, really trains, and fails when it is told to.

`tinker.ServiceClient(base_url=service.address, api_key=KEY)` is answered as by Tinker:
requests give promises, which are fetched later; requests of one adapter are done in the
order of their numbers, and one that comes twice is done once. Also run as a script:
`tinker_service.py MODEL_FOLDER [PORT]`.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tinker.lib import internal_client_holder
from tinker.proto import tinker_public_pb2 as wire
from tinker_model import Draw, Learner, State, prompt_logprobs, sample, sample_response

from tracetune.trainers.models import load_model

# The client tells the service of its errors, and waits for that when the process ends.
os.environ.setdefault("TINKER_TELEMETRY", "0")

KEY = "tml-loopback"
PROTO = "application/x-protobuf"
POLL_SECONDS = 20.0

Answer = tuple[str, bytes]


@dataclass
class Fault:
    """What goes wrong with the next requests to a path.

    Attributes:
        action: a status to answer with; "lose" to do what is asked and hang up; "fail" to
            break the promise; "hang" to never keep it.
    """

    path: str
    action: int | str
    times: int


@dataclass
class Adapters:
    """What the service keeps: adapters that learn, their saved states, and copies that are sampled from."""

    learners: dict[str, Learner] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    # By sampling session: rank and weights, or None for the base model.
    samplers: dict[str, tuple[int, dict[str, torch.Tensor]] | None] = field(default_factory=dict)


class TinkerService:
    """Serves one base model.

    Attributes:
        asked: path and body of every request that was received, in order.
    """

    def __init__(self, folder: Path | str, port: int = 0) -> None:
        self.name = str(folder)
        self.base, self.tokenizer = load_model(self.name)
        self.kept = Adapters()
        self.asked: list[tuple[str, Any]] = []
        self.promises: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._answers: dict[str, Answer] = {}
        self._later: dict[tuple[str, int], Callable[[], None]] = {}
        self._next: dict[str, int] = {}
        self._changed = threading.Condition()
        self._work: queue.Queue[Callable[[], object] | _Sampling | None] = queue.Queue()
        self._sampling_models: dict[int, Learner] = {}
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.service = self

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def learner(self) -> Learner:
        """The adapter that was made last."""
        return list(self.kept.learners.values())[-1]

    def break_next(self, path: str, action: int | str, times: int = 1) -> None:
        """Have the next requests to a path go wrong."""
        self._faults.append(Fault(path, action, times))

    def busy_until(self, free: threading.Event) -> None:
        """Compute nothing that is asked from now on until an event is set."""
        self._work.put(lambda: free.wait(60))

    def bodies(self, path: str) -> list[Any]:
        """What was sent to a path, in order."""
        return [body for asked, body in self.asked if asked == path]

    def samples_asked(self) -> list[int]:
        """How many completions each request for samples wanted."""
        return [body["num_samples"] for body in self.bodies("asample")]

    @contextmanager
    def running(self) -> Iterator[TinkerService]:
        """Listen and work, in threads."""
        threads = [
            threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self._compute, daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            self._work.put(None)
            for thread in threads:
                thread.join()

    def answer(self, path: str, body: Any) -> Answer | int | None:
        """What a request gets; a status alone is an error, None hangs up."""
        if path.startswith("sessions/"):  # sessions/ID/finish
            path = f"sessions/{path.rpartition('/')[2]}"
        self.asked.append((path, body))
        action = self._fault(path)
        if isinstance(action, int):
            return action
        handler = getattr(self, f"_{path.replace('/', '_')}", None)
        if handler is None:
            return 404
        answer = handler(body)
        if action in ("fail", "hang"):
            promise = json.loads(answer[1])["request_id"]
            with self._changed:
                self._answers.pop(promise, None)
                self.promises[promise] = action
                if action == "fail":
                    self._answers[promise] = _json(error="the machine is on fire", category="server")
                self._changed.notify_all()
        return None if action == "lose" else answer

    def _fault(self, path: str) -> int | str | None:
        for fault in self._faults:
            if fault.path == path and fault.times:
                fault.times -= 1
                return fault.action
        return None

    # Sessions

    def _client_config(self, body: Any) -> Answer:
        # A service may say so. pyqwest's threads stay when its clients are closed, and call Python also when a process
        # ends, which then aborts.
        return _json(use_pyqwest_transport=False)

    _client_dynamic_config = _telemetry = _client_config

    def _create_session(self, body: Any) -> Answer:
        return _json(session_id=secrets.token_hex(4))

    def _session_heartbeat(self, body: Any) -> Answer:
        return _json()

    def _sessions_finish(self, body: Any) -> Answer:
        return _json()

    # Adapters

    def _create_model(self, body: Any) -> Answer | int:
        if body["base_model"] != self.name:
            return 400
        model_id, config = f"{body['session_id']}:train:{body['model_seq_id']}", body["lora_config"]

        def make() -> dict[str, Any]:
            self.kept.learners[model_id] = Learner(self.base, config["rank"], config.get("seed", 0))
            return {"model_id": model_id}

        return self._promise(model_id, 0, make)

    def _get_info(self, body: Any) -> Answer:
        return _json(
            model_id=body["model_id"],
            model_data={"model_name": self.name, "tokenizer_id": self.name},
            is_lora=True,
            lora_rank=self.kept.learners[body["model_id"]].rank,
        )

    def _forward_backward(self, body: wire.ForwardBackwardRequest) -> Answer:
        return self._promise(
            body.model_id, body.seq_id, lambda: self.kept.learners[body.model_id].forward_backward(body)
        )

    def _optim_step(self, body: Any) -> Answer:
        return self._promise(
            body["model_id"],
            body["seq_id"],
            lambda: {"metrics": self.kept.learners[body["model_id"]].optim_step(body["adam_params"])},
        )

    def _save_weights(self, body: Any) -> Answer:
        path = f"tinker://{body['model_id']}/weights/{body['path']}"

        def save() -> dict[str, Any]:
            self.kept.states[path] = self.kept.learners[body["model_id"]].state()
            return {"path": path}

        return self._promise(body["model_id"], body["seq_id"], save)

    def _load_weights(self, body: Any) -> Answer | int:
        if body["path"] not in self.kept.states:
            return 404
        model_id = f"{body['session_id']}:train:{body['model_seq_id']}"

        def load() -> dict[str, Any]:
            self.kept.learners[model_id] = Learner.of(self.base, self.kept.states[body["path"]])
            return {"model_id": model_id}

        return self._promise(model_id, 0, load)

    def _save_weights_for_sampler(self, body: Any) -> Answer:
        session = f"{body['model_id']}:sample:{body['sampling_session_seq_id']}"

        def save() -> dict[str, Any]:
            learner = self.kept.learners[body["model_id"]]
            self.kept.samplers[session] = (learner.rank, learner.copy())
            return {"sampling_session_id": session}

        return self._promise(body["model_id"], body["seq_id"], save)

    # Samples

    def _create_sampling_session(self, body: Any) -> Answer:
        session = f"{body['session_id']}:base:{body['sampling_session_seq_id']}"
        self.kept.samplers[session] = None
        return _json(sampling_session_id=session)

    def _asample(self, body: Any) -> Answer | int:
        promise = f"{body['sampling_session_id']}/{body['seq_id']}"
        ids = [f"{promise}/{index}" for index in range(body["num_samples"])]
        if promise not in self.promises:
            self.promises[promise] = "asample"
            self._work.put(_Sampling(promise, body))
        return _json(request_id=promise, sample_sequence_ids=ids)

    # Promises

    def _retrieve_future(self, body: Any) -> Answer:
        promise = body["request_id"]
        with self._changed:
            self._changed.wait_for(lambda: promise in self._answers, timeout=POLL_SECONDS)
            return self._answers.get(promise) or _json(type="try_again", request_id=promise, queue_state="active")

    def _promise(self, model_id: str, number: int, work: Callable[[], Any]) -> Answer:
        """Have work done in the order of its adapter's numbers; what was promised before is not done again."""
        promise = f"{model_id}/{number}"

        def keep() -> None:
            try:
                result = work()
                self._keep(promise, (PROTO, result) if isinstance(result, bytes) else _json(**result))
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                self._keep(promise, _json(error=f"{type(error).__name__}: {error}", category="server"))

        with self._changed:
            if promise not in self.promises:
                self.promises[promise] = "begun"
                self._later[model_id, number] = keep
                while due := self._later.pop((model_id, self._next.setdefault(model_id, 0)), None):
                    self._next[model_id] += 1
                    self._work.put(due)
        return _json(request_id=promise, model_id=model_id)

    def _keep(self, promise: str, answer: Answer) -> None:
        with self._changed:
            if self.promises[promise] not in ("fail", "hang"):
                self._answers[promise] = answer
            self._changed.notify_all()

    def _compute(self) -> None:
        torch.set_num_threads(1)
        work = self._work.get()
        while work is not None:
            if not isinstance(work, _Sampling):
                work()
                work = self._work.get()
                continue
            # Requests that come together are sampled together.
            together: list[_Sampling] = []
            while isinstance(work, _Sampling):
                together.append(work)
                try:
                    work = self._work.get(timeout=0.003)
                except queue.Empty:
                    break
            self._sample(together)
            if isinstance(work, _Sampling):
                work = self._work.get()

    def _sample(self, requests: list[_Sampling]) -> None:
        for session in dict.fromkeys(request.body["sampling_session_id"] for request in requests):
            alike = [request for request in requests if request.body["sampling_session_id"] == session]
            weights = self.kept.samplers[session]
            rank = 1 if weights is None else weights[0]
            if rank not in self._sampling_models:
                self._sampling_models[rank] = Learner(self.base, rank, 0)
            learner = self._sampling_models[rank]
            if weights is not None:
                learner.put(weights[1])
            draws = [request.draws() for request in alike]
            if weights is None:
                with learner.adapter.disabled():
                    self._draw(learner, alike, draws)
            else:
                self._draw(learner, alike, draws)

    def _draw(self, learner: Learner, requests: list[_Sampling], draws: list[list[Draw]]) -> None:
        decode = self.tokenizer.decode
        model = learner.adapter.model
        sample(model, [draw for some in draws for draw in some], self.tokenizer.eos_token_id, decode)
        for request, some in zip(requests, draws, strict=True):
            logprobs = prompt_logprobs(model, some[0].prompt) if request.body.get("prompt_logprobs") else None
            self._keep(request.promise, (PROTO, sample_response(some, logprobs)))


@dataclass
class _Sampling:
    """A request for samples."""

    promise: str
    body: Any

    def draws(self) -> list[Draw]:
        prompt = tuple(token for chunk in self.body["prompt"]["chunks"] for token in chunk["tokens"])
        params = self.body["sampling_params"]
        source = None if params.get("seed") is None else torch.Generator().manual_seed(params["seed"])
        return [Draw(prompt, params, source) for _ in range(self.body["num_samples"])]


def client_tasks() -> list[str]:
    """What the clients of this process do by themselves: heartbeats, polls, looks for new settings."""
    loop = internal_client_holder._internal_client_holder_thread_singleton.loop_if_started()
    return [] if loop is None else [task.get_coro().__qualname__ for task in asyncio.all_tasks(loop)]


def _json(**values: Any) -> Answer:
    return "application/json", json.dumps(values).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    service: TinkerService

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body go out together: waiting for the client to acknowledge one costs 40 ms an answer.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("x-api-key") != KEY:
            self._say(401, _json(detail="this key is not known"))
            return
        body: Any
        if self.headers.get("content-type") == PROTO:
            body = wire.ForwardBackwardRequest.FromString(content)
        else:
            body = json.loads(content or b"{}")
        answer = self.server.service.answer(self.path.removeprefix("/api/v1/"), body)
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif isinstance(answer, int):
            self._say(answer, _json(detail=f"the service answers {answer}"))
        else:
            self._say(200, answer)

    def _say(self, status: int, answer: Answer) -> None:
        self.send_response(status)
        self.send_header("content-type", answer[0])
        self.send_header("content-length", str(len(answer[1])))
        self.end_headers()
        self.wfile.write(answer[1])
        self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    with TinkerService(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0).running() as running:
        print(f"TINKER_BASE_URL={running.address} TINKER_API_KEY={KEY}", flush=True)
        threading.Event().wait()
