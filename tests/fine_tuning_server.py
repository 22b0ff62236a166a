"""A fine-tuning service on loopback: OpenAI's files, jobs and chat, with faults on order.

Whatever it answers is an object that OpenAI's SDK validates strictly. A job's model says
which job made it, so that what a program is answered tells which model it reached.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from email import message_from_bytes
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import certifi
from openai.types import FileObject
from openai.types.chat import ChatCompletion
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tracetune.types import Upstream

KEY = "sk-loopback"
BASE_MODEL = "gpt-4.1-nano-2025-04-14"


def one_certificate(folder: Path) -> str:
    """A file for `SSL_CERT_FILE` with one certificate: a client reads them all, and litellm makes one a request."""
    first, end, _ = Path(certifi.where()).read_text(encoding="utf-8").partition("-----END CERTIFICATE-----")
    path = folder / "certificate.pem"
    path.write_text(first + end, encoding="utf-8")
    return str(path)


class FineTuningServer:
    """Serves while the `with` block lasts.

    Attributes:
        files: name and content of each upload, by id.
        jobs: what each was created with, by id, in order.
        asked: how often each kind of request came: "upload", "files", "create", "list", "job", "events", "chat".
        chats: the model and the sampling of each chat request.
        faults: for each kind of request, what becomes of the next ones: "busy" (429),
            "broken" (500), "refused" (400), "lost" (done, then cut off), "silent" (not
            done, and no answer until the server stops), "heard" (done, likewise), "page" (a web
            page in place of an answer); "" is none.
        statuses: what a job is on each look; the last one stays.
        error: of a job that has failed.
        reached: set when a request is met with silence.
        hides_files: whether it lists none of its files.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: Counter[str] = Counter()
        self.chats: list[tuple[str, dict[str, Any]]] = []
        self.faults: dict[str, list[str]] = {}
        self.statuses = ["validating_files", "running", "succeeded"]
        self.error: dict[str, Any] | None = None
        self.reached = threading.Event()
        self.hides_files = False
        self._looks: Counter[str] = Counter()
        self._released = threading.Event()
        self._lock = threading.Lock()
        service = self

        class Handler(_Handler):
            server_of_jobs = service

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def upstream(self) -> Upstream:
        """Where it answers, and its key."""
        return Upstream(f"http://127.0.0.1:{self._server.server_port}/v1", KEY)

    def rows(self, number: int = 0) -> list[dict[str, Any]]:
        """The rows of the file that a job was created with."""
        job = list(self.jobs.values())[number]
        _, content = self.files[job["training_file"]]
        return [json.loads(line) for line in content.decode().splitlines()]

    def answer(self, handler: _Handler, kind: str, work: Callable[[], dict[str, Any]]) -> None:
        """Answer a request, or do with it what is on order."""
        with self._lock:
            self.asked[kind] += 1
            ordered = self.faults.get(kind)
            fault = ordered.pop(0) if ordered else ""
        match fault:
            case "busy":
                handler.reply(429, {"error": {"message": "slow down", "code": "rate_limit"}}, {"retry-after": "0.01"})
            case "broken":
                handler.reply(500, {"error": {"message": "out of order"}})
            case "refused":
                handler.reply(400, {"error": {"message": "the file has too few rows", "code": "invalid_n_examples"}})
            case "page":
                handler.reply(200, None, {"content-type": "text/html"})
            case "silent":
                self._keep_silent()
            case "heard" | "lost":
                self._done(work)
                if fault == "heard":
                    self._keep_silent()
                handler.close_connection = True
            case _:
                handler.reply(200, self._done(work))

    def _done(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            return work()

    def _keep_silent(self) -> None:
        self.reached.set()
        self._released.wait(60)

    def upload(self, content_type: str, body: bytes) -> dict[str, Any]:
        """Keep a file."""
        form = message_from_bytes(b"content-type: " + content_type.encode() + b"\r\n\r\n" + body, policy=HTTP)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
        assert parts["purpose"].get_payload(decode=True) == b"fine-tune"
        file_id = f"file-{len(self.files) + 1}"
        content = parts["file"].get_payload(decode=True)
        self.files[file_id] = (parts["file"].get_filename(), content)
        return self._file(file_id)

    def list_files(self) -> dict[str, Any]:
        """All files, the newest first."""
        files = [] if self.hides_files else [self._file(file_id) for file_id in reversed(self.files)]
        return {"object": "list", "has_more": False, "data": files}

    def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Begin a job."""
        assert asked["training_file"] in self.files
        job_id = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[job_id] = asked
        return self._job(job_id, self.statuses[0])

    def list_jobs(self, after: str | None, limit: int) -> dict[str, Any]:
        """A page of the jobs, the newest first; pages are short, so that there are several."""
        ids = list(reversed(self.jobs))
        ids = ids[ids.index(after) + 1 :] if after else ids
        page = ids[: min(limit, 2)]
        return {
            "object": "list",
            "has_more": len(ids) > len(page),
            "data": [self._job(job_id, self.statuses[-1]) for job_id in page],
        }

    def look(self, job_id: str) -> dict[str, Any]:
        """A job, a status further on each look."""
        status = self.statuses[min(self._looks[job_id], len(self.statuses) - 1)]
        self._looks[job_id] += 1
        return self._job(job_id, status)

    def events(self, job_id: str) -> dict[str, Any]:
        """What happened so far, the newest first."""
        events = [
            {
                "id": f"{job_id}-{number}",
                "object": "fine_tuning.job.event",
                "created_at": int(time.time()),
                "level": "info",
                "type": "metrics",
                "message": f"Step {number}: training loss={1 / number:.2f}",
                "data": {"step": number, "train_loss": 1 / number},
            }
            for number in range(self._looks[job_id], 0, -1)
        ]
        for event in events:
            FineTuningJobEvent.model_validate(event, strict=True)
        return {"object": "list", "has_more": False, "data": events}

    def chat(self, asked: dict[str, Any]) -> dict[str, Any]:
        """An answer that names the model."""
        self.chats.append((asked["model"], {name: asked.get(name) for name in ("temperature", "top_p", "max_tokens")}))
        answer = {
            "id": f"chatcmpl-{len(self.chats)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": asked["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "logprobs": None,
                    "message": {"role": "assistant", "content": f"{asked['model']} {len(self.chats)}", "refusal": None},
                }
            ],
        }
        ChatCompletion.model_validate(answer, strict=True)
        return answer

    def _file(self, file_id: str) -> dict[str, Any]:
        name, content = self.files[file_id]
        file = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": "fine-tune",
            "status": "processed",
        }
        FileObject.model_validate(file, strict=True)
        return file

    def _job(self, job_id: str, status: str) -> dict[str, Any]:
        asked = self.jobs[job_id]
        hyperparameters = asked.get("hyperparameters") or asked["method"][asked["method"]["type"]]["hyperparameters"]
        has_model = status == "succeeded"
        job = {
            "id": job_id,
            "object": "fine_tuning.job",
            "created_at": int(time.time()),
            "finished_at": int(time.time()) if has_model else None,
            "error": self.error if status == "failed" else None,
            "fine_tuned_model": f"ft:{BASE_MODEL}:acme::{job_id}" if has_model else None,
            "hyperparameters": {name: hyperparameters.get(name) for name in ("n_epochs", "batch_size")},
            "model": asked["model"],
            "organization_id": "org-acme",
            "result_files": [],
            "seed": asked["seed"],
            "status": status,
            "trained_tokens": 4321 if has_model else None,
            "training_file": asked["training_file"],
            "validation_file": None,
            "metadata": asked.get("metadata"),
            "method": asked.get("method"),
        }
        FineTuningJob.model_validate(job, strict=True)
        return job


class _Handler(BaseHTTPRequestHandler):
    server_of_jobs: FineTuningServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        service, url = self.server_of_jobs, urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        match url.path.removeprefix("/v1/").split("/"):
            case ["files"]:
                service.answer(self, "files", service.list_files)
            case ["fine_tuning", "jobs"]:
                after, limit = query.get("after"), int(query.get("limit", 20))
                service.answer(self, "list", lambda: service.list_jobs(after, limit))
            case ["fine_tuning", "jobs", job_id]:
                service.answer(self, "job", lambda: service.look(job_id))
            case ["fine_tuning", "jobs", job_id, "events"]:
                service.answer(self, "events", lambda: service.events(job_id))
            case _:
                self.reply(404, {"error": {"message": self.path}})

    def do_POST(self) -> None:
        service = self.server_of_jobs
        assert self.headers["authorization"] == f"Bearer {KEY}"
        body = self.rfile.read(int(self.headers["content-length"]))
        match self.path.removeprefix("/v1/"):
            case "files":
                service.answer(self, "upload", lambda: service.upload(self.headers["content-type"], body))
            case "fine_tuning/jobs":
                service.answer(self, "create", lambda: service.create(json.loads(body)))
            case "chat/completions":
                service.answer(self, "chat", lambda: service.chat(json.loads(body)))
            case _:
                self.reply(404, {"error": {"message": self.path}})

    def reply(
        self, status: int, value: dict[str, Any] | None, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        content = b"<!doctype html>" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", "content-length": str(len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None: ...
