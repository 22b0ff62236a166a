"""`tracetune import`: files of Collectors and exporters, packed or not, broken or not, once or twice."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tracemalloc
from random import Random

import orjson
import pytest
import zstandard
from cli.conftest import Finished
from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from otlp.serving import JSON, PROTOBUF, a_record, a_span, body, request

from tracetune import Store
from tracetune.adapters.formats import Refused
from tracetune.adapters.otlp.files import read

TRACES = request("/v1/traces", [a_span(1), a_span(2)])
LOGS = request("/v1/logs", [a_record(1)])
LINES = b"".join(
    [body("/v1/traces", TRACES, JSON), b"\n", body("/v1/logs", LOGS, JSON), b"\r\n\n", orjson.dumps({**TRACES, **LOGS})]
)


def framed(*messages: bytes) -> bytes:
    """Messages as the Collector's file exporter frames them."""
    return b"".join(len(message).to_bytes(4) + message for message in messages)


TRACES_MESSAGE = body("/v1/traces", TRACES, PROTOBUF)
LOGS_MESSAGE = body("/v1/logs", LOGS, PROTOBUF)
# Whatever the form, two spans and one record.
FORMS = {
    "JSON lines": [LINES],
    "JSON lines with a byte order mark": [b"\xef\xbb\xbf" + LINES],
    "JSON lines, gzip": [gzip.compress(LINES)],
    "JSON lines, two gzip members": [gzip.compress(LINES[:200]) + gzip.compress(LINES[200:])],
    "JSON lines, Zstandard": [zstandard.compress(LINES)],
    "JSON lines, two Zstandard frames": [zstandard.compress(LINES[:200]) + zstandard.compress(LINES[200:])],
    "protobuf frames": [framed(TRACES_MESSAGE, LOGS_MESSAGE)],
    "protobuf frames, Zstandard": [zstandard.compress(framed(LOGS_MESSAGE, TRACES_MESSAGE))],
    "protobuf messages": [TRACES_MESSAGE, LOGS_MESSAGE],
    "protobuf messages, gzip": [gzip.compress(TRACES_MESSAGE), gzip.compress(LOGS_MESSAGE)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same(tracetune, tmp_path, form):
    """Each form is told by its bytes, whatever the file is called, and importing it twice adds nothing."""
    files = []
    for number, content in enumerate(FORMS[form]):
        files.append(tmp_path / f"traces-{number}.txt")
        files[-1].write_bytes(content)
    is_said_twice = form.startswith("JSON")
    assert tracetune("import", "traces.duckdb", *files) == Finished(
        0,
        "",
        f"traces.duckdb: 2 spans and 1 log records are new, {3 * is_said_twice} were there already, 0 were refused\n",
    )
    again, n_repeated = tracetune("import", "traces.duckdb", *files), 3 + 3 * is_said_twice
    assert again.stderr == (
        f"traces.duckdb: 0 spans and 0 log records are new, {n_repeated} were there already, 0 were refused\n"
    )
    store = Store("traces.duckdb")
    assert store.sql("SELECT name FROM spans ORDER BY name").rows() == [{"name": "span 1"}, {"name": "span 2"}]
    assert store.sql("SELECT body FROM other_records").rows() == [{"body": "record 1"}]


def test_what_is_wrong_is_said_and_the_rest_is_kept(tracetune, tmp_path):
    """A broken line, a metric and a bad span are named with their place; the exit status is 1."""
    bad_span = request("/v1/traces", [a_span(3), a_span(4, spanId="00" * 8)])
    lines = [orjson.dumps(TRACES), b'{"resourceSpans": [', b'{"resourceMetrics": []}', b"[]", orjson.dumps(bad_span)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.bin").write_bytes(framed(LOGS_MESSAGE, b"\x0a\xff\xff")[:-1])
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    done = tracetune("import", "traces.duckdb", "a.jsonl", "b.bin", "c.png")
    assert done == Finished(
        1,
        "",
        "a.jsonl: line 2: not JSON: Expecting value at character 19\n"
        "a.jsonl: line 3: metrics and profiles are not kept\n"
        "a.jsonl: line 4: not OTLP: neither resourceSpans nor resourceLogs\n"
        "a.jsonl: line 5: resourceSpans[0].scopeSpans[0].spans[1]: its spanId is all zero\n"
        "b.bin: frame 2: it ends after 2 of 3 bytes\n"
        "c.png: frame 1: neither OTLP as JSON lines nor OTLP as protobuf\n"
        "traces.duckdb: 3 spans and 1 log records are new, 0 were there already, 6 were refused\n",
    )


def test_a_file_full_of_nonsense_is_not_told_line_by_line(tracetune, tmp_path):
    """Twenty places are shown, and how many more there are."""
    (tmp_path / "a.jsonl").write_bytes(b"{\n" * 1000)
    done = tracetune("import", "traces.duckdb", "a.jsonl")
    said = done.stderr.splitlines()
    assert (done.status, len(said)) == (1, 22)
    assert said[-2:] == [
        "and 980 more places that could not be read",
        "traces.duckdb: 0 spans and 0 log records are new, 0 were there already, 1000 were refused",
    ]


def test_a_message_is_not_taken_for_json():
    """One whose first part has 123 bytes begins with a line end and a brace, and is a message all the same."""
    [content] = [
        content
        for size in range(60)
        if (content := body("/v1/traces", request("/v1/traces", [a_span(1, name="x" * size, attributes=[])]), PROTOBUF))
        and content.startswith(b"\n{")
    ]
    [line] = read(io.BytesIO(content))
    assert (line.spans, line.records) == (1, 0)


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \n", b"\n" + LINES, b"\r\n  " + LINES])
def test_blank_lines_are_nothing(content):
    """A file may be empty, and lines may be."""
    pieces = list(read(io.BytesIO(content)))
    assert [piece for piece in pieces if isinstance(piece, Refused)] == []
    assert len(pieces) == (4 if b"{" in content else 0)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "Zstandard"])
def test_a_packed_file_that_breaks_off_gives_what_is_whole(pack):
    """Of a file cut in the middle the whole lines are kept, and that there was more is said."""
    lines = [orjson.dumps(request("/v1/traces", [a_span(number)])) for number in range(1, 2001)]
    packed = pack(b"\n".join(lines))
    pieces = list(read(io.BytesIO(packed[: len(packed) // 2])))
    assert pieces[-1] == Refused("the rest of it", "it cannot be read: it breaks off in the middle of what is packed")
    assert sum(getattr(piece, "spans", 0) for piece in pieces) > 100
    assert [piece for piece in pieces[:-1] if isinstance(piece, Refused)] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl"], "there is no file nothing.jsonl; nothing was imported"),
        (["."], "there is no file .; nothing was imported"),
        (
            ["a.jsonl", "--format", "fax"],
            "there is no format called 'fax'; there are: otlp, openinference, langfuse, langsmith, openai, rows",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_sentence(tracetune, tmp_path, arguments, message):
    """A file that is missing and a format that is not known leave the store as it was."""
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert tracetune("import", "traces.duckdb", *arguments) == Finished(1, "", f"error: {message}\n")


def test_standard_input_is_a_file_too(tmp_path):
    """`-` reads what is piped in, packed or not."""
    command = [sys.executable, "-m", "tracetune.cli", "import", "traces.duckdb", "-"]
    done = subprocess.run(command, input=gzip.compress(LINES), capture_output=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.decode()) == (
        0,
        "traces.duckdb: 2 spans and 1 log records are new, 3 were there already, 0 were refused\n",
    )


def test_what_the_official_file_exporter_writes_is_imported(tracetune, tmp_path):
    """Each span of OpenTelemetry's own exporter of JSON lines is there, under its parent."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(FileSpanExporter(tmp_path / "otel.jsonl")))
    tracer = provider.get_tracer("a library")
    with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner") as span:
        span.record_exception(ValueError("no"))
    provider.shutdown()
    assert tracetune("import", "traces.duckdb", "otel.jsonl").status == 0
    query = (
        "SELECT name, parent_span_id IS NULL AS is_root, events LIKE '%ValueError%' AS failed FROM spans ORDER BY name"
    )
    assert Store("traces.duckdb").sql(query).rows() == [
        {"name": "inner", "is_root": False, "failed": True},
        {"name": "outer", "is_root": True, "failed": None},
    ]


def test_a_large_file_needs_little_memory():
    """Of a packed file of 30 MB no more than a few lines are held at once."""
    random = Random(0)  # what can't be packed well, as traces can't
    lines = (orjson.dumps(request("/v1/traces", [a_span(1, name=random.randbytes(50_000).hex())])) for _ in range(300))
    packed = zstandard.compress(b"\n".join(lines))
    tracemalloc.start()
    try:
        assert sum(1 for piece in read(io.BytesIO(packed))) == 300
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
