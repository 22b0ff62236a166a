"""The trees that frameworks' programs are expected to record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tracetune.testing import span_tree
from tracetune.tracer import names

SHOWN = (names.KIND, names.KEY, names.INVOCATION, names.TURN, names.UNORDERED, names.STATUS, names.MODULE)


def node(kind: str, name: str, *children: Any, invocation: int = 0, **more: Any) -> dict[str, Any]:
    """A program, module or tool; `more` are its key, status and unordered."""
    said = {names.KIND: kind, names.MODULE: name, names.KEY: more.pop("key", ""), names.INVOCATION: invocation}
    said |= {f"tracetune.{attribute}": value for attribute, value in more.items()}
    return {"name": name, "attributes": said, "children": list(children)}


def program(name: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A program."""
    return node("program", name, *children, **more)


def module(name: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A module."""
    return node("module", name, *children, **more)


def tool(name: str, *children: Any, **more: Any) -> dict[str, Any]:
    """A tool."""
    return node("tool", name, *children, **more)


def call(turn: int = 0, *inner: Any, **more: Any) -> dict[str, Any]:
    """A call, whose module is the node around it."""
    said = {names.KIND: "lm", names.TURN: turn}
    return {"call": said | {f"tracetune.{attribute}": value for attribute, value in more.items()}, "inner": list(inner)}


def trees_of(spool: Path) -> list[dict[str, Any]]:
    """What a spool holds, in the same form: calls are stripped of what they have from the node around them."""
    return [_shown(tree, None) for tree in span_tree(spool, attributes=SHOWN)]


def _shown(tree: dict[str, Any], around: str | None) -> dict[str, Any]:
    said = tree["attributes"]
    children = in_order([_shown(child, said.get(names.MODULE)) for child in tree["children"]])
    if said[names.KIND] != "lm":
        return {"name": tree["name"], "attributes": said, "children": children}
    own = (names.KIND, names.TURN, names.STATUS, *((names.MODULE,) if said.get(names.MODULE) != around else ()))
    return {"call": {name: said[name] for name in own if name in said}, "inner": children}


def in_order(siblings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they began; those that ran at once, by what tells them apart."""

    def place(sibling: dict[str, Any]) -> tuple[str, int]:
        said = sibling.get("attributes", {})
        return said.get(names.KEY, ""), said[names.INVOCATION] if said.get(names.UNORDERED) else -1

    return sorted(siblings, key=place)


def reported_twice(trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same trees where a second instrumentation reports each call, inside the first."""
    return [
        {**tree, "inner": [call() | {"call": tree["call"]}]}
        if "call" in tree
        else {**tree, "children": reported_twice(tree["children"])}
        for tree in trees
    ]
