"""The command line: `tracetune demo`, `show`, `sql`, `groups`, `lint`, `serve`, `import` and `export`.

Data goes to stdout and words to stderr, so that every command can stand in a pipe. Each
command imports what it needs when it runs, which keeps `tracetune --help` quick. What
tracetune refuses is one line on stderr and exit status 1; a command line that cannot be
read has status 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper

from tracetune.commands import exchange, linting, looking, training
from tracetune.commands.app import app
from tracetune.errors import TracetuneError
from tracetune.terminal import printable

# Importing the modules gives the application its commands.
__all__ = ["app", "exchange", "linting", "looking", "main", "training"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command, and exit with its status.

    Args:
        arguments: what stands after `tracetune`; those of this process by default.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # data is UTF-8 whatever the locale: a trace never fails to print
    try:
        try:
            app(args=arguments, prog_name="tracetune")
        finally:
            sys.stdout.flush()  # here, where it is known what to say when that fails
    except BrokenPipeError:
        _drop_output()  # whoever reads has read enough
        sys.exit(1)
    except TracetuneError as error:
        sys.exit(f"error: {printable(str(error))}")
    except (OSError, UnicodeError, MemoryError) as error:
        _drop_output()
        sys.exit(f"error: {printable(_in_a_sentence(error))}")


def _in_a_sentence(error: Exception) -> str:
    """What is said of an error that no command has a better word for."""
    if isinstance(error, OSError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror or error}; free the disk, or see who may read and write there"
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; ask for less at once"
    return f"{error}; give text that is UTF-8"


def _drop_output() -> None:
    """Have nothing written to stdout any more: Python would try once more when it ends, and show a traceback."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
