"""The one Typer application, and what every command that takes a store has in common."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracetune.terminal import printable

if TYPE_CHECKING:
    from tracetune.grouping import Store

app = typer.Typer(
    help="Record the calls of language-model programs, look at them, and train on them.",
    epilog="Example: tracetune demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # help and errors are plain text, the same on a terminal and in a pipe
    pretty_exceptions_enable=False,
)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="The DuckDB file that was recorded into.")]


Wait = Annotated[
    float,
    typer.Option("--wait", min=0, metavar="SECONDS", help="How long to wait for another process that holds the store."),
]
WAIT_SECONDS = 10.0


def open_store(path: Path, wait: float = WAIT_SECONDS) -> Store:
    """A store to look into."""
    from tracetune.grouping import Store

    return Store(path, wait=wait, read_only=True)


def say(words: str) -> None:
    """Words for the person at the terminal, apart from the data."""
    print(printable(words), file=sys.stderr)
