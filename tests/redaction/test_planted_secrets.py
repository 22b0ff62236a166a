"""Secrets that a program passes around are in nothing that is written, wherever the program puts them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import duckdb
import openai
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Status, StatusCode
from redaction.planted_secrets import NAMED, SHAPED

import tracetune as tt
from tracetune.adapters.otlp import Receiver, Sender
from tracetune.errors import TracetuneError, TracetuneWarning
from tracetune.grouping import Store
from tracetune.grouping.export_otlp import Export
from tracetune.rows import kto_rows, preference_rows, supervised_rows
from tracetune.tracer import Spool, spool_folder
from tracetune.tracer.warn import warn

HIDDEN = {secret for _, secret in SHAPED.values()} | set(NAMED.values())


class Echo(BaseHTTPRequestHandler):
    """Answers with what it was asked; refuses the model `broken`, and quotes the key."""

    def do_POST(self) -> None:
        """Answer one request."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if body["model"] == "broken":
            key = self.headers["authorization"].removeprefix("Bearer ")
            self._send(401, {"error": {"message": f"Incorrect API key provided: {key}.", "code": "invalid_api_key"}})
            return
        message = {"role": "assistant", "content": f"You said: {body['messages'][-1]['content']}"}
        if body.get("tools"):
            function = {"name": "login", "arguments": body["messages"][-1]["content"]}
            message |= {"content": None, "tool_calls": [{"id": "t1", "type": "function", "function": function}]}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m"}
        self._send(200, {**answer, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of the echo."""
    echo = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{echo.server_port}/v1"
    echo.shutdown()
    echo.server_close()


@dataclasses.dataclass
class Login:
    """Known by its fields."""

    user: str
    password: str
    note: str


class Shows:
    """Known by what it shows of itself."""

    def __init__(self, said: str, named: str) -> None:
        self.said, self.named = said, named

    def __repr__(self) -> str:
        return f"Shows(said={self.said!r}, api_key={self.named!r}, headers=[('Cookie', {self.named!r})])"


@tt.tool
def use(value: object = None, **more: object) -> object:
    """Take anything and give it back."""
    return value


@tt.module
def ask(server: str, text: str, key: str) -> None:
    """Ask a model, with tools and without, and one that refuses."""
    client = openai.OpenAI(base_url=server, api_key=key, max_retries=0)
    messages = [{"role": "system", "content": "Log in."}, {"role": "user", "content": text}]
    client.chat.completions.create(model="m", messages=messages)
    parts = [{"role": "user", "content": [{"type": "text", "text": text}]}, messages[1]]
    client.chat.completions.create(model="m", messages=parts)
    login = {"type": "function", "function": {"name": "login", "parameters": {"type": "object"}}}
    client.chat.completions.create(model="m", messages=messages, tools=[login])
    with contextlib.suppress(openai.AuthenticationError):
        client.chat.completions.create(model="broken", messages=messages)


@tt.module
def fail(text: str) -> None:
    """Raise what says a secret: in its message, in a note, in its causes."""
    try:
        try:
            {}[text]
        except KeyError as first:
            raise ValueError(f"cannot use {text}") from first
    except ValueError as error:
        error.add_note(f"tried {text}")
        raise RuntimeError([text, Login("ann", "swordfish", text)]) from error


def _all_of(server: str, theirs: trace.Tracer, text: str) -> None:
    use(text)
    use({"text": text, "list": [text], "deep": {"deeper": [{"deepest": text}]}, "tags": {text}})
    use(Login("ann", "swordfish", text), shows=Shows(text, "swordfish"), documents=[json.dumps({"text": text})])
    use({text: 1, (text,): 2, text.encode(): 3})
    use(json.dumps({"body": json.dumps({"text": f"line\n{text}"})}))
    use("x" * 65_000 + f" {text} " + "y" * 1000)
    ask(server, text, key=text.split("\n")[0] if text.startswith("sk-") else "sk-" + "unused")
    for model in ("m", "n"):
        tt.record_call(messages=[{"role": "user", "content": text}], completion=text, model=f"{model} {text}")
    with contextlib.suppress(RuntimeError):
        fail(text)
    span = trace.get_current_span()
    span.set_attribute("tag", text)
    span.set_attribute("tags", [text])
    span.add_event(f"saw {text}", {"what": text})
    span.record_exception(ValueError(text))
    with theirs.start_as_current_span("chat", attributes={"openinference.span.kind": "LLM"}) as foreign:
        foreign.set_attribute("llm.input_messages.0.message.content", text)
        foreign.set_attribute("input.value", json.dumps({"messages": [{"role": "user", "content": text}]}))
        foreign.set_attribute("http.urls", [text])
        foreign.add_event("gen_ai.user.message", {"content": text})
        foreign.record_exception(ValueError(text))
        foreign.set_status(Status(StatusCode.ERROR, f"ValueError: {text}"))
    tt.reward(0.5, feedback=f"it said {text}")


@tt.program
def run_all(server: str, theirs: Any, texts: list[str]) -> list[str]:
    """Put every text everywhere."""
    for text in texts:
        _all_of(server, theirs, text)
    use(dict(NAMED))
    use(**NAMED)
    use([list(item) for item in NAMED.items()])
    use(tuple(NAMED.items()))
    use([{"name": name, "value": value} for name, value in NAMED.items()])
    use(json.dumps(NAMED))
    use("  " + json.dumps(NAMED, indent=2))
    use(json.dumps({"body": json.dumps(NAMED)}))
    use({"environment": NAMED, "headers": list(NAMED.items())})
    use(Shows("nothing", "plain0words"))
    with theirs.start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}) as foreign:
        for name, value in NAMED.items():
            foreign.set_attribute(f"http.request.header.{name}", value)
            foreign.set_attribute(name, [value])
    error = ValueError(dict(NAMED), list(NAMED.items()))
    trace.get_current_span().record_exception(error)
    tt.record_call(messages=[], completion="", error=error)
    return texts


@pytest.fixture(scope="module")
def recorded(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store beside whose path everything was recorded, and that nobody has opened yet."""
    path = tmp_path_factory.mktemp("planted") / "traces.duckdb"
    provider = TracerProvider()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "get_tracer_provider", lambda: provider)
        with tt.record(path, run="try-1"):
            run_all(server, provider.get_tracer("somebody.elses"), [text for text, _ in SHAPED.values()])
            for number in range(2):
                with tt.rollout(example_id="q1"):
                    _short(SHAPED["openai"][0])
                    tt.reward(number)
    return path


@tt.program
def _short(text: str) -> None:
    tt.record_call(messages=[{"role": "user", "content": f"Use {text}."}], completion="I will.")
    tt.record_call(messages=[{"role": "user", "content": "Hello?"}], completion="Hello!")


def found_in(text: str) -> set[str]:
    """Which secrets a text has."""
    return {secret for secret in HIDDEN if secret in text}


def texts_of(store: Path) -> Iterator[tuple[str, str]]:
    """Every value of every column that can hold a text, in every table of a store, as text."""
    with duckdb.connect(store, read_only=True) as connection:
        columns = connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal "
            "AND (data_type LIKE '%VARCHAR%' OR data_type LIKE '%JSON%' OR data_type LIKE '%BLOB%')"
        ).fetchall()
        assert len(columns) > 100
        for table, column in columns:
            for (value,) in connection.execute(f'SELECT DISTINCT "{column}"::VARCHAR FROM "{table}"').fetchall():
                if value is not None:
                    yield f"{table}.{column}", value


def assert_nothing_in(store: Path) -> None:
    """No text of a store has a secret in it."""
    assert {place: found for place, text in texts_of(store) if (found := found_in(text))} == {}


def test_there_are_more_than_sixty_four_of_them() -> None:
    """Every secret is its own, so that each is looked for."""
    assert len(HIDDEN) == len(SHAPED) + len(NAMED) > 80


def test_nothing_is_in_the_files_of_the_spool(recorded: Path) -> None:
    """What the process wrote has none, before anybody reads it."""
    written = [path.read_text() for path in sorted(spool_folder(recorded).rglob("*")) if path.is_file()]
    assert sum(text.count("\n") for text in written) > 500
    assert [found_in(text) for text in written] == [set()] * len(written)


@pytest.fixture(scope="module")
def store(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store with everything in it."""
    copied = tmp_path_factory.mktemp("store") / "traces.duckdb"
    spool_folder(copied).mkdir()
    for segment in spool_folder(recorded).iterdir():
        (spool_folder(copied) / segment.name).write_bytes(segment.read_bytes())
    opened = Store(copied)
    report = opened.ingest()
    assert (report.rejected, report.conflicting) == (0, 0)
    return opened


def test_nothing_is_in_the_store(store: Store) -> None:
    """No text column of any table has one, by SQL, because the file is compressed."""
    assert_nothing_in(store.path)


def test_calls_whose_texts_were_changed_say_so(store: Store) -> None:
    """Every call that was asked or answered with a secret is marked, and the others are not."""
    counted = store.sql(
        "SELECT redacted, count(*) AS n, bool_and(contains(messages || completion, '[redacted]')) AS shown "
        "FROM calls WHERE messages LIKE '%Use %' OR messages LIKE '%Hello%' GROUP BY ALL ORDER BY ALL"
    ).rows()
    assert counted == [{"redacted": False, "n": 2, "shown": False}, {"redacted": True, "n": 2, "shown": True}]
    unmarked = store.sql(
        "SELECT messages, completion FROM calls WHERE NOT redacted "
        "AND (contains(messages, '[redacted]') OR contains(completion, '[redacted]'))"
    ).rows()
    assert unmarked == []


def test_what_was_changed_is_not_learned_from_as_text(store: Store) -> None:
    """Such calls are left out of groups with their reason, and out of every kind of row."""
    batch = store.groups(tt.Grouping(), where="run = 'try-1' AND example_id = 'q1'")
    assert [group.key["invocation"] for group in batch.groups] == [0]
    assert {item.reason for item in batch.left_out} == {"redacted"}
    said = json.dumps([list(rows.rows) for rows in (supervised_rows(batch), preference_rows(batch), kto_rows(batch))])
    assert "redacted" not in said
    [module] = store.lint(where="run = 'try-1' AND example_id = 'q1'").modules
    assert module.left_out == {"redacted": 2}


def test_exports_have_none(store: Store, tmp_path: Path) -> None:
    """Parquet files and a twin over OTLP have no more than the store has."""
    store.export_parquet(tmp_path / "parquet")
    with duckdb.connect() as connection:
        for file in sorted((tmp_path / "parquet").rglob("*.parquet")):
            for row in connection.execute("FROM read_parquet(?)", [str(file)]).fetchall():
                assert found_in(repr(row)) == set()
    twin = tmp_path / "twin.duckdb"
    with Receiver(twin, port=0) as receiver, Sender(receiver.url) as sender:
        for page in Export(store, None).documents():
            sender.send(page)
    assert found_in("".join(path.read_text() for path in spool_folder(twin).iterdir())) == set()
    counted = "SELECT redacted, count(*) AS n FROM calls GROUP BY ALL ORDER BY ALL"
    assert Store(twin).sql(counted).rows() == store.sql(counted).rows()


def test_imported_documents_have_none(tmp_path: Path) -> None:
    """Spans and records of somebody else's that come as documents lose their secrets, and nothing else, on the way."""
    path = tmp_path / "imported.duckdb"
    spool = Spool(spool_folder(path))
    clean = call(1, "How many tokens are in a password?")
    assert spool.write_document(clean, spans=1, records=0)
    [segment] = spool_folder(path).iterdir()
    assert segment.read_bytes() == clean
    for number, (text, _) in enumerate(SHAPED.values(), start=2):
        spool.write_document(call(number, text), spans=1, records=0)
    spool.write_document(document(99, NAMED), spans=1, records=0)
    record = {
        "timeUnixNano": "1700000000000000000", "traceId": f"{1000:032x}", "spanId": f"{1000:016x}",
        "eventName": "gen_ai.user.message", "attributes": [],
        "body": {"kvlistValue": {"values": [
            {"key": "content", "value": {"stringValue": f"key {SHAPED['github'][0]}"}},
            {"key": "password", "value": {"stringValue": NAMED["password"]}},
        ]}},
    }  # fmt: skip
    logs = {"resourceLogs": [{"resource": {}, "scopeLogs": [{"scope": {}, "logRecords": [record]}]}]}
    spool.write_document(json.dumps(logs).encode() + b"\n", spans=0, records=1)
    spool.write_document(document(1000, {"gen_ai.operation.name": "chat"}), spans=1, records=0)
    spool.close()
    store = Store(path)
    store.ingest()
    counted = "SELECT redacted, count(*) AS n FROM calls WHERE messages IS NOT NULL GROUP BY ALL ORDER BY ALL"
    assert store.sql(counted).rows() == [{"redacted": False, "n": 1}, {"redacted": True, "n": len(SHAPED) + 1}]
    assert_nothing_in(path)


def call(number: int, text: str) -> bytes:
    """An LM call of somebody else's, as a line."""
    return document(number, {"llm.input_messages.0.message.content": text, "gen_ai.operation.name": "chat"})


def document(number: int, attributes: dict[str, str]) -> bytes:
    """One span of somebody else's, as a line."""
    span = {
        "traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "chat", "kind": 3,
        "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000000000001",
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
        "status": {},
    }  # fmt: skip
    scopes = [{"scope": {"name": "theirs"}, "spans": [span]}]
    return json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": scopes}]}).encode() + b"\n"


def test_lines_that_are_set_aside_have_none(tmp_path: Path) -> None:
    """A line that cannot be read is kept in `rejected.jsonl` without its secrets."""
    path = tmp_path / "traces.duckdb"
    spool_folder(path).mkdir()
    lines = [json.dumps({"not": "OTLP", "text": text}) for text, _ in SHAPED.values()]
    lines += [json.dumps(NAMED)[:-1], *(text.replace("\n", " ") for text, _ in SHAPED.values())]
    (spool_folder(path) / "20260101T000000.000000Z-1-00000000.jsonl").write_text("\n".join(lines) + "\n")
    report = Store(path).ingest()
    assert report.rejected == len(lines)
    aside = (spool_folder(path) / "rejected.jsonl").read_text()
    assert found_in(aside) == set()


@pytest.mark.parametrize("name", SHAPED)
def test_errors_and_warnings_of_ours_have_none(name: str) -> None:
    """A message that quotes a value, or what a service answered, is said without the secret in it."""
    text, secret = SHAPED[name]
    assert secret not in str(TracetuneError(f"not {text!r}; give a number"))
    with pytest.warns(TracetuneWarning) as caught:
        warn(f"the service said: {text}")
    assert secret not in str(caught[0].message)


def test_a_completion_with_its_tokens_keeps_them_and_says_that_its_text_was_changed(tmp_path: Path) -> None:
    """Exact tokens are learned from as they are; the text beside them is in no row."""
    path = tmp_path / "exact.duckdb"
    text, secret = SHAPED["hugging face"]
    call = {
        "module": "ask", "messages": [{"role": "user", "content": text}], "prompt_token_ids": [1, 2],
        "completion_token_ids": [3, 4], "completion_logprobs": [-0.5, -0.25],
    }  # fmt: skip
    store = Store(path)
    calls = [{**call, "completion": f"{reward} {text}"} for reward in (0, 1)]
    store.add_rollouts({"example_id": "q1", "reward": reward, "calls": [made]} for reward, made in enumerate(calls))
    [group] = store.groups().groups
    assert [(member.is_exact, member.is_redacted) for member in group.members] == [(True, True)] * 2
    rows = supervised_rows(store.groups())
    assert (list(rows.rows), rows.skipped) == ([], {"redacted": 2})
    assert store.lint().modules[0].notes["redacted_text"] == 2
    assert {place for place, value in texts_of(path) if secret in value} == set()


def test_what_the_hook_changed_is_marked_too(tmp_path: Path) -> None:
    """A message that the user's own function changed is no text to learn from either."""
    path = tmp_path / "hook.duckdb"
    with tt.record(path, redact=lambda text: re.sub(r"\d{4}-\d{4}", "****", text)):
        tt.record_call(messages=[{"role": "user", "content": "pay with 1234-5678"}], completion="paid")
        tt.record_call(messages=[{"role": "user", "content": "pay in cash"}], completion="paid")
    assert Store(path).sql("SELECT redacted FROM calls ORDER BY started_at").rows() == [
        {"redacted": True},
        {"redacted": False},
    ]
