"""Code blocks of Markdown files, and running them as a reader would: top to bottom, in one folder.

- A `python` block runs in the namespace that the blocks above it made.
- In a `console` block each line after `$ ` is a command; the lines below it are what it prints.
- An `output` block, or a `text` block with nothing between, is what the block above it prints.
- `…` in what is printed stands for anything.
- `<!-- not run: why -->` on the line above a block is the one exception.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("**/*.md"))]

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*).*$")
_NOT_RUN = re.compile(r"^\s*<!-- not run: (?P<why>\S.*?) -->\s*$")


class WrongDocument(AssertionError):
    """A document that does not do what it shows."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        line: of the opening fence, counted from 1.
        not_run: the reason that its comment gives, or None.
        prints: what the block after it says that it prints, or None.
    """

    path: Path
    line: int
    language: str
    text: str
    not_run: str | None = None
    prints: str | None = None

    @property
    def runs(self) -> bool:
        """Whether a reader is meant to run it."""
        return self.language in ("python", "console")

    @property
    def place(self) -> str:
        """Where it stands, as editors understand it."""
        return f"{self.path.name}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a file that are to be run, each with what it is said to print."""
    blocks: list[Block] = []
    ready_for_output = False  # nothing but blank lines since a block that runs
    for line, above, language, text in _fenced(path.read_text(encoding="utf-8").splitlines()):
        nothing_between = ready_for_output and above == ""
        if language == "output" or (language == "text" and nothing_between):
            if not blocks or blocks[-1].prints is not None:
                raise WrongDocument(f"{path.name}:{line}: output of no block; it must follow the block that prints it")
            blocks[-1] = replace(blocks[-1], prints=text)
            ready_for_output = False
            continue
        excuse = _NOT_RUN.match(above.rpartition("\n")[2])
        block = Block(path, line, language, text, not_run=excuse["why"] if excuse else None)
        ready_for_output = block.runs
        if block.runs:
            blocks.append(block)
    return blocks


def run_blocks(blocks: list[Block], folder: Path) -> None:
    """Run the blocks of one file in a folder, which must be the current one.

    Raises:
        WrongDocument: at the first block that prints something else than it says.
    """
    module = ModuleType("document")
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up
    try:
        for block in blocks:
            if block.not_run is not None:
                continue
            if block.language == "console":
                _run_console(block, folder)
            else:
                _run_python(block, module)
    finally:
        del sys.modules[module.__name__]


def check_output(place: str, shown: str, printed: str) -> None:
    """Compare what a document shows with what was printed; spaces at line ends do not count."""
    shown, printed = ("\n".join(line.rstrip() for line in text.strip("\n").splitlines()) for text in (shown, printed))
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    if not re.fullmatch(pattern, printed, flags=re.DOTALL):
        raise WrongDocument(f"{place} shows\n{shown}\n--- and prints\n{printed}")


def _fenced(lines: list[str]) -> Iterator[tuple[int, str, str, str]]:
    """Gives (line of the fence, words since the block before, language, text) of each block."""
    above: list[str] = []
    place = 0
    while place < len(lines):
        opening = _FENCE.match(lines[place])
        if opening is None:
            above.append(lines[place])
            place += 1
            continue
        start = place
        closing = opening["indent"] + opening["ticks"]
        place += 1
        while place < len(lines) and lines[place].rstrip() != closing:
            place += 1
        text = textwrap.dedent("\n".join(lines[start + 1 : place]) + "\n")
        yield start + 1, "\n".join(above).strip("\n").strip(), opening["language"], text
        above = []
        place += 1


def _run_python(block: Block, module: ModuleType) -> None:
    printed = io.StringIO()
    # The empty lines in front give a traceback the line numbers of the document.
    code = compile("\n" * block.line + block.text, str(block.path), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(printed):
        exec(code, vars(module))
    if block.prints is not None:
        check_output(block.place, block.prints, printed.getvalue())


def _run_console(block: Block, folder: Path) -> None:
    entry_points = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{entry_points}{os.pathsep}{os.environ['PATH']}"}
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.replace("\\\n", " ").partition("\n")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=240,
        )
        if done.returncode != 0 and not shown.startswith("error: "):
            raise WrongDocument(f"{block.place}: `{command}` exits with {done.returncode}:\n{done.stdout}")
        if shown.strip():
            check_output(block.place, shown, done.stdout)
