"""How a value of another instrumentation's attribute is read: as text, number, list or JSON.

The conventions fix the types, and emitters don't keep to them: numbers come as texts,
lists as JSON, one text where a list is meant. A reader gives the value that was meant,
or raises ValueError or TypeError where there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson

_LARGEST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Partly:
    """A value that does not hold all that its attribute says, so that the attribute is kept beside it.

    Attributes:
        value: what was read.
        is_cut: the attribute itself lacks a part.
    """

    value: Any
    is_cut: bool = False


def text(value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    if not value:
        raise ValueError("an empty text")
    return value


def lower(value: Any) -> str:
    """A text in small letters: the conventions write names of providers so."""
    return text(value).lower()


def any_text(value: Any) -> str:
    """A text, which may be empty."""
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def whole(value: Any) -> int:
    """A whole number of 64 bits, which may have come as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("not a number")
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError("not a whole number")
    if abs(number) > _LARGEST:
        raise ValueError("larger than 64 bits hold")
    return number


def real(value: Any) -> float:
    """A finite number, which may have come as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("not a number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def texts(value: Any) -> list[str]:
    """A list of texts; it may have come as JSON, or as its only text."""
    if isinstance(value, str):
        value = json_list(value) if value.startswith("[") else [value]
    if not isinstance(value, list) or not value:
        raise TypeError("not a list")
    return [any_text(item) for item in value]


def json_text(value: Any) -> str:
    """Any value as JSON; a text that is JSON already stays as it is."""
    if isinstance(value, str):
        try:
            orjson.loads(value)
        except orjson.JSONDecodeError:
            return orjson.dumps(value).decode()
        return value
    return orjson.dumps(value).decode()


def json_list(value: Any) -> list[Any]:
    """A list, or the JSON text of one; what stands alone is a list of one."""
    if isinstance(value, str):
        value = orjson.loads(value)
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def parts_or_text(content: Any) -> Any:
    """A message's content; a list of parts comes as JSON where an attribute holds texts only."""
    if isinstance(content, str) and content.startswith('[{"'):
        try:
            parts = orjson.loads(content)
        except orjson.JSONDecodeError:
            return content
        if all(isinstance(part, dict) and "type" in part for part in parts):
            return writable(parts)
    return content


def writable(value: Any) -> Any:
    """The same value, if it can be written as JSON again: what is nested too deep can be read, and not written."""
    orjson.dumps(value)
    return value
