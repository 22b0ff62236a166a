"""Warnings that never become errors in the program that is being traced, and point at its own lines."""

from __future__ import annotations

import logging
import sys
import warnings

from tracetune.errors import TracetuneWarning
from tracetune.redaction import redacted_repr
from tracetune.tracer.interrupts import is_interrupt

_logger = logging.getLogger("tracetune")


def warn(message: str) -> None:
    """Warn with `TracetuneWarning`; where a filter makes it an error, log it instead.

    Tracing must not raise into user code, not even under `python -W error`.
    """
    try:
        warnings.warn(message, TracetuneWarning, stacklevel=_frames_of_ours())
    except BaseException as error:  # the warning itself, or whatever a program's own `showwarning` raises
        if is_interrupt(error):
            raise
        _logger.warning(redacted_repr(message))


def _frames_of_ours() -> int:
    """How many frames above `warn` the line stands that led here: `with record(…)` does so through contextlib."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(("tracetune.", "contextlib")):
        frame = frame.f_back
        level += 1
    return level
