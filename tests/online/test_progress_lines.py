"""The progress display where it is no terminal: a line for each thing that is said."""

from __future__ import annotations

import pytest

from tracetune.online.progress import ProgressDisplay


@pytest.mark.parametrize(("shown", "lines"), [(True, "job 1: [bold]\\x1b[31m step 3\n"), (False, "")])
def test_a_notice_is_a_line_that_a_terminal_cannot_obey(capsys, shown, lines):
    """What a service says is shown as it is written, on standard error, and not at all where nothing is shown."""
    with ProgressDisplay("run-1", 3, shown=shown) as display:
        display.notice("job 1: [bold]\x1b[31m step 3")
    assert tuple(capsys.readouterr()) == ("", lines)
