"""The command line: `tracetune demo`, `show`, `sql`, `groups` and `lint`.

Data goes to stdout and words to stderr, so that every command can stand in a pipe. Each
command imports what it needs when it runs, which keeps `tracetune --help` quick. What
tracetune refuses is one line on stderr and exit status 1; a command line that cannot be
read has status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

from tracetune.commands import linting, looking, training
from tracetune.commands.app import app
from tracetune.errors import TracetuneError
from tracetune.terminal import printable

__all__ = ["app", "linting", "looking", "main", "training"]  # importing the modules gives the application its commands


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit with its status.

    Args:
        arguments: what stands after `tracetune`; those of this process by default.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # data is UTF-8 whatever the locale: a trace never fails to print
    try:
        app(args=arguments, prog_name="tracetune")
    except TracetuneError as error:
        sys.exit(f"error: {printable(str(error))}")


if __name__ == "__main__":
    main()
