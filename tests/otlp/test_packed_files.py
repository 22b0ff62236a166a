"""Files that unpack to very much: read in little time and memory, or refused in a sentence."""

from __future__ import annotations

import gzip
import io
import json

import pytest
import zstandard

from tracetune.adapters import packing
from tracetune.adapters.formats import Refused, format_named
from tracetune.adapters.packing import skip_blank, unpacked

OTLP = b'{"resourceSpans": []}\n'
FORMATS = ["otlp", "openinference", "langfuse", "langsmith", "openai", "rows"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, bytes], ids=["gzip", "zstd", "plain"])
def test_blank_lines_are_skipped_by_the_block(monkeypatch, name, pack):
    """Thirty-two million of them are few lines to look at, and what follows has its right number."""
    blank = 32 * 1024 * 1024
    looked_at = []
    readline = io.BufferedReader.readline

    class Watched(io.BufferedReader):
        def readline(self, size=-1):
            looked_at.append(size)
            return readline(self, size)

    monkeypatch.setattr(packing.io, "BufferedReader", Watched)
    found = list(format_named(name).read(io.BytesIO(pack(b"\n" * blank + b"{nonsense}\n"))))
    assert [(refused.place, refused.count) for refused in found] == [(f"line {blank + 1}", 1)]
    assert len(looked_at) < 100


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_begins_with_blank_lines_is_read(name):
    """However many there are before its first object: they are no reason to pass over it in silence."""
    found = list(format_named(name).read(io.BytesIO(b" \r\n" * 1000 + b"{nonsense}\n\n\n\n\n{nonsense}\n")))
    assert [refused.place for refused in found] == ["line 1001", "line 1006"]


def test_what_unpacks_to_far_more_than_a_log_does_is_refused(monkeypatch):
    """A sentence says so, and what to do where it is right; members and frames are counted together."""
    monkeypatch.setattr(packing, "_UNSUSPECTED_BYTES", 1024 * 1024)
    bomb = gzip.compress(b" " * 4_000_000)
    for packed in (bomb, bomb * 3, zstandard.compress(b" " * 4_000_000)):
        [refused] = format_named("otlp").read(io.BytesIO(packed))
        assert refused == Refused(
            "the rest of it",
            "it cannot be read: it unpacks to more than 500 times its size; if that is right, unpack it and import "
            "that",
        )
    lines = b"".join(json.dumps({"resourceSpans": [], "n": number}).encode() + b"\n" for number in range(100_000))
    assert unpacked(io.BytesIO(gzip.compress(lines))).read() == lines


def test_skipping_stops_at_what_is_not_blank():
    """Also where it is not the beginning of a line."""
    file = io.BufferedReader(io.BytesIO(b"\n\n  \tx\n"), 2)
    assert (skip_blank(file), file.read()) == (2, b"x\n")
    assert skip_blank(io.BufferedReader(io.BytesIO(b""))) == 0
