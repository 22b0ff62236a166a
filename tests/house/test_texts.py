"""Texts: files are short, and name no machine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

LEFT_BEHIND = {"__pycache__", "build", "dist"}
LEFT_BEHIND_ENDINGS = (".egg-info", ".duckdb.spool", ".duckdb.checkpoints", ".duckdb.tmp")


def files_of(repository: Path) -> Iterator[Path]:
    """Every file of the project: what tools leave behind apart."""
    for folder, folders, files in os.walk(repository):
        folders[:] = [
            name
            for name in folders
            if name == ".ci" or not (name.startswith(".") or name in LEFT_BEHIND or name.endswith(LEFT_BEHIND_ENDINGS))
        ]
        yield from (Path(folder) / name for name in files)


def texts_of(repository: Path) -> Iterator[tuple[str, str]]:
    """The path and the text of every file that is UTF-8."""
    for file in files_of(repository):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        yield str(file.relative_to(repository)), text


def test_no_file_is_long(repository):
    """Code and SQL stay within 600 lines a file; a document may be as long as its subject."""
    long = {
        path: text.count("\n")
        for path, text in texts_of(repository)
        if path.endswith((".py", ".sql")) and text.count("\n") > 600
    }
    assert long == {}


def test_no_text_names_the_machine_it_was_written_on(repository):
    """Neither the project's own place, nor a home, nor a virtual environment stands in a file."""
    places = {str(repository), str(Path.home()), sys.prefix} - {"/"}
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, places))})(?![\w-])")
    assert [path for path, text in texts_of(repository) if pattern.search(text)] == []


def test_every_source_opens_with_what_lives_there(repository):
    """Each Python file begins with a docstring, and each SQL file with a comment."""
    silent = [
        path
        for path, text in texts_of(repository)
        if (path.endswith(".py") and not re.match(r'(#!.*\n)?r?"""', text))
        or (path.endswith(".sql") and not text.startswith("--"))
    ]
    assert silent == []
