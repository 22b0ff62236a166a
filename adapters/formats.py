"""Formats of files that can be imported: one module each, loaded when it is asked for.

A format turns a file into lines of the spool, piece by piece, so that a file of any size
needs little memory. What it cannot read it gives as a refusal and goes on. To add one,
write a module with `read` and name it in `_FORMATS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import BinaryIO, Protocol

from tracetune.errors import InvalidInput, MissingDependency

_FORMATS = {
    "otlp": "tracetune.adapters.otlp.files",
    "openinference": "tracetune.adapters.logs.openinference",
    "langfuse": "tracetune.adapters.logs.langfuse",
    "langsmith": "tracetune.adapters.logs.langsmith",
    "openai": "tracetune.adapters.logs.openai_chat",
    "rows": "tracetune.adapters.logs.table",
}


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """What a format may be told about its files.

    Attributes:
        columns: which column of a table holds what; for `rows`.
        reward: the name of the score that is the reward.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    reward: str = "reward"


DEFAULTS = FormatOptions()
"""Nothing was said."""


@dataclass(frozen=True, slots=True)
class Line:
    """One document for the spool.

    Attributes:
        text: the line, newline included.
        spans: how many spans it holds.
        records: how many log records.
    """

    text: bytes
    spans: int
    records: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Something in a file that cannot be imported.

    Attributes:
        place: where it stands in the file, such as "line 7".
        reason: what is wrong with it.
        count: how many spans or records are lost with it; 1 where that cannot be told.
    """

    place: str
    reason: str
    count: int = 1


class Format(Protocol):
    """How files of one format are read."""

    def read(self, file: BinaryIO, options: FormatOptions = DEFAULTS) -> Iterator[Line | Refused]:
        """What a file holds, in its order; the file is read from where it stands to its end."""


def format_named(name: str) -> Format:
    """The format of that name.

    Raises:
        InvalidInput: if there is none.
        MissingDependency: if it needs a package that is not installed.

    Example:
        >>> format_named("fax")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        tracetune.errors.InvalidInput: there is no format called 'fax'; there are: otlp, openinference, ...
    """
    if name not in _FORMATS:
        raise InvalidInput(f"there is no format called {name!r}; there are: {', '.join(_FORMATS)}")
    try:
        module: Format = import_module(_FORMATS[name])
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the format {name!r} needs the package {error.name}, which is not installed; pip install 'tracetune[otlp]'"
        ) from error
    return module
