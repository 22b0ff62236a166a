"""The documents' blocks that no test runs, told at the end of every session."""

from __future__ import annotations

import pytest
from house.markdown_blocks import DOCUMENTS, blocks_of


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many blocks are not run, and why."""
    blocks = [block for document in DOCUMENTS for block in blocks_of(document)]
    excused = [block for block in blocks if block.not_run is not None]
    terminalreporter.write_line(f"documents: {len(blocks)} blocks to run, {len(excused)} of them not run")
    for block in excused:
        terminalreporter.write_line(f"  {block.place}: {block.not_run}")
