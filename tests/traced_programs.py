"""Small traced functions, and the span trees that are expected of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracetune import tracer
from tracetune.testing import span_tree
from tracetune.tracer import names

SHOWN = (
    names.KIND,
    names.INVOCATION,
    names.KEY,
    names.UNORDERED,
    names.OUTPUT,
    names.LATE,
    names.STATUS,
)

OVERLAPPING = "ignore:executions of module:tracetune.errors.TracetuneWarning"


@tracer.module
def double(number: int) -> int:
    """A plain module."""
    return number * 2


def record_elsewhere(store: str) -> str:
    """What a spawned process does to be recorded."""
    with tracer.recording(store), tracer.rollout(example_id="q1") as rollout:
        double(1)
    return rollout.id


@tracer.module
async def double_later(number: int) -> int:
    """An async module."""
    await asyncio.sleep(0)
    return number * 2


@tracer.tool
def add(left: int, right: int = 1) -> int:
    """A tool."""
    return left + right


def span(kind: str, name: str, invocation: int, output: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A node of the expected tree; `more` are its key, status, late and unordered."""
    attributes = {names.KIND: kind, names.KEY: more.get("key", ""), names.INVOCATION: invocation, names.OUTPUT: output}
    for said in ("unordered", "late", "status"):
        if said in more:
            attributes[f"tracetune.{said}"] = more[said]
    return {"name": name, "attributes": attributes, "children": list(children)}


def module(name: str, invocation: int, output: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A module in the expected tree."""
    return span("module", name, invocation, output, *children, **more)


def program(name: str, output: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A program in the expected tree."""
    return span("program", name, 0, output, *children, **more)


def trees_of(run: Callable[[], Any], store: Path) -> list[dict[str, Any]]:
    """What a program records, run once, whether it is async or not."""
    with tracer.recording(store):
        result = run()
        if asyncio.iscoroutine(result):
            asyncio.run(result)
    return span_tree(f"{store}.spool", attributes=SHOWN)
