"""The garbage collector may run anywhere, also where a context variable is being set: being traced breaks nothing."""

from __future__ import annotations

import contextvars
import gc
import os
import subprocess
import sys
from collections import Counter

from tracetune import tracer
from tracetune.testing import span_tree

# Abandoned generators and objects whose end calls a decorated function, collected in the middle of setting variables.
ABANDONING = """
import contextvars, gc, sys
from tracetune import tracer

@tracer.module
def numbers():
    try:
        yield from range(3)
    finally:
        farewell()

@tracer.tool
def farewell():
    return None

class Closing:
    def __del__(self):
        farewell()

VARIABLES = [contextvars.ContextVar(f"variable {number}", default=0) for number in range(40)]

gc.disable()
with tracer.recording(sys.argv[1]):
    for number in range(2000):
        abandoned = numbers()
        next(abandoned)
        cycle = [abandoned, Closing()]
        cycle.append(cycle)
        del abandoned, cycle
        # The collector comes with one of the next allocations, those that setting the variable makes.
        gc.set_threshold(gc.get_count()[0] + number % 7)
        gc.enable()
        VARIABLES[number % 40].set(number)
        gc.disable()
        assert VARIABLES[number % 40].get() == number
    gc.collect()
print("done")
"""


def test_what_the_collector_ends_breaks_no_context(tmp_path):
    """Variables have the values that they were given, the process lives, and every span is there."""
    path = tmp_path / "traces.duckdb"
    # Memory that is used after it was freed is noticed.
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    done = subprocess.run(
        [sys.executable, "-c", ABANDONING, path], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    # Which of two generators the collector ends first is its own affair, and so is the parent of what they call then.
    waiting, names = span_tree(f"{path}.spool", attributes=()), Counter()
    while waiting:
        span = waiting.pop()
        names[span["name"]] += 1
        waiting += span["children"]
    assert names == {"numbers": 2000, "farewell": 4000}


def test_on_python_3_11_the_collector_sets_variables_in_a_copy(store):
    """What it runs while it interrupts another setting of this context leaves the context alone."""
    variable = contextvars.ContextVar("variable", default="outer")

    @tracer.module
    def numbers():
        try:
            yield 1
        finally:
            farewell()

    @tracer.tool
    def farewell():
        variable.set("inner")

    with tracer.recording(store):
        abandoned = numbers()
        next(abandoned)
        cycle = [abandoned]
        cycle.append(cycle)
        del abandoned, cycle
        gc.collect()
    assert variable.get() == ("outer" if sys.version_info < (3, 12) else "inner")
