"""Warnings that never become errors in the program that is being traced, and point at its own lines."""

from __future__ import annotations

import logging
import sys
import warnings

from tracetune.errors import TracetuneWarning
from tracetune.redaction import redacted_repr

_logger = logging.getLogger("tracetune")


def warn(message: str) -> None:
    """Warn with `TracetuneWarning`; where a filter makes it an error, log it instead.

    Tracing must not raise into user code, not even under `python -W error`.
    """
    try:
        warnings.warn(message, TracetuneWarning, stacklevel=_frames_of_ours())
    except TracetuneWarning:
        _logger.warning(redacted_repr(message))


def _frames_of_ours() -> int:
    """How many frames above `warn` the line stands that led here."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("tracetune."):
        frame = frame.f_back
        level += 1
    return level
