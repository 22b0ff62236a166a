"""A small server that answers as vLLM does: token ids where they are asked for, adapters that come and go.

Its model is a table: the logits of the next token depend on the model's name and on the
last token. Field names, error bodies and the order of things are those of vLLM's
OpenAI-compatible server with `--logprobs-mode processed_logprobs`.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from endpoint.upstreams import ScriptedService, scripted

END = 1
WORDS = ["<pad>", "<end>", *(f"w{index}" for index in range(2, 12))]


def logits(model: str, last: int) -> list[float]:
    """The next token's logits."""
    source = random.Random(f"{model}/{last}")
    return [source.uniform(-2, 2) for _ in WORDS]


def logprobs(model: str, last: int, temperature: float) -> list[float]:
    """The logarithms of the distribution that is sampled from."""
    scaled = [value / temperature for value in logits(model, last)]
    highest = max(scaled)
    norm = highest + math.log(sum(math.exp(value - highest) for value in scaled))
    return [value - norm for value in scaled]


class VllmLike:
    """The state of the server.

    Attributes:
        base: the base model's name.
        prompt: what it takes every chat to say, where that is not in its own words.
        returns_ids: False for a version that does not know `return_token_ids`.
        is_dynamic: whether adapters may be loaded.
        adapters: the folder of each adapter by its name.
        events: what was asked, in order: ("load", name), ("unload", name) or ("sample", name).
    """

    def __init__(
        self, base: str = "base", *, prompt: str | None = None, returns_ids: bool = True, is_dynamic: bool = True
    ) -> None:
        self.base = base
        self.prompt = prompt
        self.returns_ids = returns_ids
        self.is_dynamic = is_dynamic
        self.adapters: dict[str, Path] = {}
        self.events: list[tuple[str, str]] = []

    def __call__(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        path = handler.path.removeprefix("/v1/")
        if path in ("chat/completions", "completions"):
            self._complete(handler, body, is_chat=path.startswith("chat"))
        elif path == "load_lora_adapter" and self.is_dynamic:
            self._load(handler, body["lora_name"], Path(body["lora_path"]))
        elif path == "unload_lora_adapter" and self.is_dynamic:
            self._unload(handler, body["lora_name"])
        else:
            _send(handler, 404, {"detail": "Not Found"})

    def _load(self, handler: BaseHTTPRequestHandler, name: str, folder: Path) -> None:
        self.events.append(("load", name))
        if name in self.adapters:
            _refuse(handler, 400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        elif not (folder / "adapter_config.json").exists():
            _refuse(handler, 404, f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError")
        else:
            self.adapters[name] = folder
            _send(handler, 200, f"Success: LoRA adapter '{name}' added successfully.")

    def _unload(self, handler: BaseHTTPRequestHandler, name: str) -> None:
        self.events.append(("unload", name))
        if self.adapters.pop(name, None) is None:
            _refuse(handler, 404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        else:
            _send(handler, 200, f"Success: LoRA adapter '{name}' removed successfully.")

    def _complete(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], *, is_chat: bool) -> None:
        model = body["model"]
        self.events.append(("sample", model))
        if model != self.base and model not in self.adapters:
            _refuse(handler, 404, f"The model `{model}` does not exist.", "NotFoundError", "model")
            return
        if body.get("temperature", 1.0) < 0:
            _refuse(handler, 400, "temperature must be non-negative", "BadRequestError", "temperature")
            return
        answer = _Answer(self, body, is_chat)
        if not body.get("stream"):
            _send(handler, 200, answer.whole())
            return
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream; charset=utf-8")
        handler.end_headers()
        for chunk in answer.chunks():
            handler.wfile.write(b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n")
        handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True


class _Answer:
    """The answer to one request."""

    def __init__(self, server: VllmLike, body: dict[str, Any], is_chat: bool) -> None:
        self.body, self.is_chat = body, is_chat
        self.with_ids = server.returns_ids and bool(body.get("return_token_ids"))
        prompt = (server.prompt or body["messages"][-1]["content"]) if is_chat else body["prompt"]
        prompts = prompt if isinstance(prompt, list) else [prompt]
        self.prompts = [[WORDS.index(word) for word in text.split()] for text in prompts]
        self.choices = [self._sampled(ids) for ids in self.prompts for _ in range(body.get("n") or 1)]
        kind = "chatcmpl" if is_chat else "cmpl"
        self.head = {"id": f"{kind}-{random.getrandbits(64):x}", "created": 1, "model": body["model"]}

    def _sampled(self, prompt_ids: list[int]) -> tuple[list[int], list[int], list[float], str]:
        """Prompt, tokens, their log-probabilities, and why they ended."""
        temperature, tokens, numbers = self.body.get("temperature", 1.0), [], []
        limit = self.body.get("max_completion_tokens") or self.body.get("max_tokens") or 16
        last = prompt_ids[-1]
        while len(tokens) < limit:
            known = logprobs(self.body["model"], last, temperature or 1e-3)
            (last,) = random.choices(range(len(WORDS)), [math.exp(number) for number in known])
            tokens.append(last)
            numbers.append(known[last])
            if last == END:
                return prompt_ids, tokens, numbers, "stop"
        return prompt_ids, tokens, numbers, "length"

    def whole(self) -> dict[str, Any]:
        answer = {**self.head, "object": "chat.completion" if self.is_chat else "text_completion", "choices": []}
        for index, (prompt_ids, tokens, numbers, reason) in enumerate(self.choices):
            text = _text(tokens)
            said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
            choice = {"index": index, **said, "logprobs": self._logprobs(tokens, numbers), "finish_reason": reason}
            choice |= {"stop_reason": None, "token_ids": tokens if self.with_ids else None}
            if not self.is_chat:
                choice["prompt_token_ids"] = prompt_ids if self.with_ids else None
            answer["choices"].append(choice)
        if self.is_chat:
            answer["prompt_token_ids"] = self.prompts[0] if self.with_ids else None
        sampled = sum(len(tokens) for _, tokens, _, _ in self.choices)
        return {**answer, "usage": {"prompt_tokens": 3, "completion_tokens": sampled, "total_tokens": 3 + sampled}}

    def chunks(self) -> Iterator[dict[str, Any]]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        if self.is_chat:
            for index in range(len(self.choices)):
                delta = {"role": "assistant", "content": ""}
                choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
                first = {"prompt_token_ids": self.prompts[0] if self.with_ids else None}
                yield {**self.head, "object": kind, "choices": [choice], **first}
        # Two tokens at a time, the choices by turns.
        for start in range(0, max(len(tokens) for _, tokens, _, _ in self.choices), 2):
            for index, (prompt_ids, tokens, numbers, reason) in enumerate(self.choices):
                part = slice(start, start + 2)
                if not tokens[part]:
                    continue
                text = (" " if start else "") + _text(tokens[part]) if _text(tokens[part]) else ""
                choice = {"index": index, **({"delta": {"content": text}} if self.is_chat else {"text": text})}
                choice["logprobs"] = self._logprobs(tokens[part], numbers[part])
                choice["finish_reason"] = reason if start + 2 >= len(tokens) else None
                if self.with_ids:
                    choice["token_ids"] = tokens[part]
                    if not self.is_chat and start == 0:
                        choice["prompt_token_ids"] = prompt_ids
                yield {**self.head, "object": kind, "choices": [choice]}
        if (self.body.get("stream_options") or {}).get("include_usage"):
            yield {**self.head, "object": kind, "choices": [], "usage": {"total_tokens": 9}}

    def _logprobs(self, tokens: list[int], numbers: list[float]) -> dict[str, Any] | None:
        asked = self.body.get("logprobs")
        if self.is_chat:
            if not asked:
                return None
            pairs = zip(tokens, numbers, strict=True)
            content = [{"token": WORDS[token], "logprob": number, "top_logprobs": []} for token, number in pairs]
            return {"content": content}
        return None if asked is None else {"tokens": [WORDS[token] for token in tokens], "token_logprobs": numbers}


@contextmanager
def serving(server: VllmLike) -> Iterator[ScriptedService]:
    """The server on loopback until the block ends."""
    with scripted(server) as service:
        yield service


def _text(tokens: list[int]) -> str:
    return " ".join(WORDS[token] for token in tokens if token != END)


def _refuse(handler: BaseHTTPRequestHandler, status: int, message: str, kind: str, param: str | None = None) -> None:
    _send(handler, status, {"error": {"message": message, "type": kind, "param": param, "code": status}})


def _send(handler: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
    content = json.dumps(answer, ensure_ascii=False).encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)
