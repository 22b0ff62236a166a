"""SQL that stands in files beside the code that runs it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from string import Template


@cache
def script(room: str, name: str) -> str:
    """The text of one of our SQL files.

    Args:
        room: the room of `grouping` that it stands in; "sql" for the views of the store itself.
        name: the file's name without its suffix.

    Example:
        >>> script("upkeep", "delete_rollouts").startswith("--")
        True
    """
    return (files("tracetune.grouping") / room / f"{name}.sql").read_text(encoding="utf-8")


@cache
def template(room: str, name: str) -> Template:
    """One of our SQL files that has `$placeholders`."""
    return Template(script(room, name))
