"""Answers: tables, JSON and CSV, safe to look at and faithful in a pipe."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetune.errors import InvalidInput
from tracetune.terminal import printable, write_csv, write_json, write_table

COLUMNS = ["module", "invocation", "reward", "sampling"]
ROWS = [
    ("hop", 0, 0.123456789, {"temperature": 1.0}),
    ("answer", 12, None, {"temperature": 1.0}),
    ("a very long name", 3, -1.0, None),
]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        """Whether somebody is looking: yes."""
        return True


@pytest.fixture(scope="module", autouse=True)
def plain_terminal():
    """A terminal without colours, so that every control character in what is shown is somebody else's."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TERM", "dumb")
        environment.setenv("COLUMNS", "60")
        yield


def written(write, columns, rows, stream=None):
    """What a writer writes."""
    stream = stream or io.StringIO()
    write(columns, rows, stream)
    return stream.getvalue()


def test_a_plain_table_is_aligned():
    """Names to the left, numbers to the right, NULL by name, no blanks at line ends."""
    assert written(write_table, COLUMNS, ROWS) == (
        "module            invocation    reward  sampling\n"
        "----------------  ----------  --------  --------------------\n"
        'hop                        0  0.123457  {"temperature": 1.0}\n'
        'answer                    12      NULL  {"temperature": 1.0}\n'
        "a very long name           3        -1  NULL\n"
    )


def test_a_table_without_rows_has_its_header():
    """Even an empty answer says what its columns are called."""
    assert written(write_table, COLUMNS[:2], []) == "module  invocation\n------  ----------\n"


def test_a_table_on_a_terminal_is_drawn():
    """On a terminal rich draws the table, takes no text for markup and shortens long cells."""
    shown = written(write_table, ["text", "n"], [("[red]x[/red] :smile:", 1), ("y" * 999, 22)], Terminal())
    lines = shown.splitlines()
    assert lines[3].split() == ["[red]x[/red]", ":smile:", "1"]
    assert shown.count("y") == 199
    assert "…" in shown


def test_json_is_one_object_a_line():
    """JSON output is an array that any reader understands, with full precision."""
    text = written(write_json, COLUMNS, ROWS)
    assert json.loads(text) == [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    assert len(text.splitlines()) == 3
    assert written(write_json, COLUMNS, []) == "[]\n"


def test_json_knows_the_types_of_a_database():
    """Numbers stay numbers, times are ISO 8601, bytes are hexadecimal, and what is not finite is null."""
    row = {
        "sum": Decimal(3),
        "price": Decimal("1.5"),
        "nan": math.nan,
        "inf": [math.inf],
        "at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "on": date(2026, 1, 2),
        "time": time(1, 2),
        "blob": b"\x00\xff",
        "true": True,
    }
    assert json.loads(written(write_json, list(row), [tuple(row.values())])) == [
        {
            "sum": 3,
            "price": 1.5,
            "nan": None,
            "inf": [None],
            "at": "2026-01-02T03:04:05+00:00",
            "on": "2026-01-02",
            "time": "01:02:00",
            "blob": "00ff",
            "true": True,
        }
    ]


def test_json_refuses_two_columns_of_one_name():
    """An object cannot hold both, so neither is dropped in silence."""
    with pytest.raises(InvalidInput, match="two columns are called 'a'"):
        written(write_json, ["a", "b", "a"], [(1, 2, 3)])


def test_csv_is_the_data_itself():
    """In a pipe CSV holds every character as it was, NULL as nothing, structs as JSON."""
    rows = [("\x1b[31mred\n", None, [1, 2], 0.1 + 0.2)]
    assert list(csv.reader(io.StringIO(written(write_csv, list("abcd"), rows)))) == [
        ["a", "b", "c", "d"],
        ["\x1b[31mred\n", "", "[1, 2]", "0.30000000000000004"],
    ]


@given(st.text(st.characters()))
def test_printable_text_steers_no_terminal(text):
    """Whatever a model wrote, what is shown has one line and no character that a terminal obeys."""
    shown = printable(text)
    assert all(character.isprintable() or character in "\u200c\u200d" for character in shown)
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


@given(st.lists(st.tuples(st.text(), st.integers() | st.none()), max_size=3))
def test_no_writer_sends_control_characters_to_a_terminal(rows):
    """Tables, JSON and CSV on a terminal hold line ends and printable characters only."""
    for write in (write_table, write_json, write_csv):
        shown = written(write, ["text\x1b", "n"], rows, Terminal()).replace("\n", "")
        assert printable(shown) == shown
