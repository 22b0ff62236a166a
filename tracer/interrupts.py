"""Whether an exception comes from a signal, or from the code that was running.

Tracing runs code of the user's: `repr`, serialisers, keys, redaction hooks. Whatever that
code raises must not reach the program, not even SystemExit or KeyboardInterrupt. But a
real Ctrl-C, and a signal handler that exits, can raise at any line of the main thread,
also while tracing runs there. Those belong to the program and must reach it.
"""

from __future__ import annotations

import dis
import functools
import signal
import threading
from types import CodeType, TracebackType
from typing import Any

_RAISE = dis.opmap["RAISE_VARARGS"]


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception was raised by a signal, and not by the code that it interrupted.

    Python runs signal handlers in the main thread alone, between two instructions. The
    traceback tells the cases apart:

    - It has a frame of a signal handler that is installed: the handler raised, whatever it raised.
    - It is a KeyboardInterrupt that no `raise` statement made: Python's own handler of Ctrl-C is not
      written in Python, so the last frame is the one that was interrupted, at another instruction.

    Example:
        >>> try:
        ...     raise KeyboardInterrupt
        ... except KeyboardInterrupt as error:
        ...     is_interrupt(error)
        False
    """
    if isinstance(error, Exception) or threading.current_thread() is not threading.main_thread():
        return False
    frames = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    handlers = _handlers()
    if any(frame.tb_frame.f_code in handlers for frame in frames):
        return True
    if not isinstance(error, KeyboardInterrupt):
        return False
    return not frames or frames[-1].tb_frame.f_code.co_code[frames[-1].tb_lasti] != _RAISE


def _handlers() -> set[CodeType]:
    """The code of the signal handlers that are written in Python."""
    codes = set()
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        code = getattr(getattr(handler, "__func__", handler), "__code__", None)
        if isinstance(code, CodeType):
            codes.add(code)
    return codes
