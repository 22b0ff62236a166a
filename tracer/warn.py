"""Warnings that never become errors in the program that is being traced."""

from __future__ import annotations

import logging
import warnings

from tracetune.errors import TracetuneWarning

_logger = logging.getLogger("tracetune")


def warn(message: str) -> None:
    """Warn with `TracetuneWarning`; where a filter makes it an error, log it instead.

    Tracing must not raise into user code, not even under `python -W error`.
    """
    try:
        warnings.warn(message, TracetuneWarning, stacklevel=3)
    except TracetuneWarning:
        _logger.warning(message)
