"""Answers for people and for programs: tables, JSON and CSV.

Cells hold text that models and users wrote. A terminal obeys some characters instead of
showing them, so whatever is meant to be read passes through `printable` first; what goes
into a pipe as JSON or CSV is the data itself.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, TextIO

from tracetune.errors import InvalidInput

# Joiners shape letters and emoji in many scripts, and do nothing else.
_HARMLESS = frozenset("\u200c\u200d")
_LONGEST_CELL = 200


def printable(text: str) -> str:
    r"""The text with every character escaped that a terminal would obey or that shows as nothing.

    Line ends, escape sequences, marks that turn the direction of writing, and lone
    surrogates are written as Python would write them.

    Example:
        >>> print(printable("two\nlines, \x1b[31mred"))
        two\nlines, \x1b[31mred
    """
    return _escaped(text, lambda character: character.encode("unicode_escape").decode("ascii"))


def write_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], stream: TextIO) -> None:
    """Write rows as a table: drawn and with long cells shortened on a terminal, plain and whole elsewhere.

    Example:
        >>> import sys
        >>> write_table(["module", "reward"], [["hop", 0.5], ["answer", 1]], sys.stdout)
        module  reward
        ------  ------
        hop        0.5
        answer       1
    """
    names = [printable(name) for name in columns]
    cells = [[_cell(value) for value in row] for row in rows]
    is_number = [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(columns))]
    if stream.isatty():
        _draw(names, cells, is_number, stream)
        return
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for line in (names, ["-" * width for width in widths], *cells):
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, is_number, strict=True)
        )
        stream.write("  ".join(aligned).rstrip() + "\n")


def write_json(columns: Sequence[str], rows: Iterable[Sequence[Any]], stream: TextIO) -> None:
    """Write rows as a JSON array, one object a line; a number that is not finite becomes null.

    Raises:
        InvalidInput: if two columns have the same name.

    Example:
        >>> import sys
        >>> write_json(["module", "reward"], [["hop", 0.5], ["answer", None]], sys.stdout)
        [{"module": "hop", "reward": 0.5},
         {"module": "answer", "reward": null}]
    """
    for name in columns:
        if list(columns).count(name) > 1:
            raise InvalidInput(f"two columns are called {name!r}, which JSON cannot tell apart; rename one with AS")
    separator = "["
    for row in rows:
        stream.write(separator + _json(dict(zip(columns, row, strict=True))))
        separator = ",\n "
    stream.write("[]\n" if separator == "[" else "]\n")


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], stream: TextIO) -> None:
    """Write rows as CSV with a header; NULL is an empty field, lists and structs are JSON.

    On a terminal, text is made printable; elsewhere it is written as it stands.

    Example:
        >>> import sys
        >>> write_csv(["module", "messages"], [["hop", [{"role": "user"}]]], sys.stdout)
        module,messages
        hop,"[{""role"": ""user""}]"
    """
    shown = printable if stream.isatty() else str
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([shown(name) for name in columns])
    for row in rows:
        writer.writerow(["" if value is None else shown(_text(value)) for value in row])


def _draw(names: list[str], cells: list[list[str]], is_number: list[bool], stream: TextIO) -> None:
    # rich takes longer to import than a small query takes to run, and a pipe has no use for it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for name, right in zip(names, is_number, strict=True):
        table.add_column(Text(name), justify="right" if right else "left", overflow="fold")
    for row in cells:
        # Text, not str: a trace that says "[red]" is not markup.
        table.add_row(*(Text(_shortened(cell)) for cell in row))
    Console(file=stream).print(table)


def _is_number(value: Any) -> bool:
    # NULL stands in any column; bool is an int to Python, and a word to a reader.
    return value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"


def _cell(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return format(value, ".6g")
    return printable(_text(value))


def _text(value: Any) -> str:
    """A value as text, with all its digits."""
    if isinstance(value, str):
        return value
    plain = _plain(value)
    return plain if isinstance(plain, str) else _json(plain)


def _json(value: Any) -> str:
    # JSON has escapes for every character, so text is safe to look at and still the same text.
    return _escaped(json.dumps(_plain(value), ensure_ascii=False), lambda character: json.dumps(character)[1:-1])


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in _HARMLESS else escape(character) for character in text
    )


def _plain(value: Any) -> Any:
    """A value from a query in the types that JSON has."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            # Sums of whole numbers come as decimals.
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)
