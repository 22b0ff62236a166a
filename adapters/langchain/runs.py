"""LangChain's runs as a tree, and which of them are executions of modules.

A run's label is what names its module: the metadata `module_id`, a tag `module:x`, or the
node of LangGraph. Labels are inherited, so a run whose label differs from its parent's is
a new execution; a run without a label is one by its own name, unless it is one of
LangChain's wrappers. The first run outside any execution is the program.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from tracetune.tracer import LMCall, Node, OpenExecution, session
from tracetune.tracer.scope import Scope, current_scope, deeper, enclosing_context

# Whatever these call belongs to the node around them.
_WRAPPERS = ("Runnable", "LangGraph")
_PLUMBING = ("prompt", "parser")

_TAG = "module:"
_BRANCH = "map:key:"
_PUSH = "__pregel_push"


class Run:
    """One run: what LangChain says of it, and what is recorded of it.

    Args:
        id: LangChain's.
        parent: the run that it is a part of, where that is known.
        name: what it shows.
        tags: its own and those that it inherits.
        metadata: likewise.

    Attributes:
        execution: the module's, program's or tool's that it is, if it is one.
        call: the one that it is, if it is a model's.
        has_answered: a streamed answer has begun.
    """

    def __init__(
        self,
        id: UUID,  # noqa: A002  a run's id is its id
        parent: Run | None,
        name: str,
        tags: Sequence[str],
        metadata: Mapping[str, Any],
    ) -> None:
        self.id = id
        self.name = name
        self.metadata = metadata
        self.execution: OpenExecution | None = None
        self.call: LMCall | None = None
        self.has_answered = False
        self._parent = parent
        self._label = _label(tags, metadata)
        self._branch = next((tag.removeprefix(_BRANCH) for tag in tags if tag.startswith(_BRANCH)), "")
        self._here = otel_context.get_current() if parent is not None else enclosing_context()

    @property
    def context(self) -> Context:
        """Where what it calls belongs."""
        if self.execution is not None:
            return self.execution.context
        return deeper(self._here, self._parent.context) if self._parent is not None else self._here

    def begin(self, given: Any, kind: str) -> None:
        """Begin the execution that the run is, if it is one.

        Args:
            given: the run's input.
            kind: LangChain's word for what it is: "chain", "tool", "prompt" and so on.
        """
        if kind == "tool":
            self._enter(Node("tool", self.name), given)
        elif kind in _PLUMBING:
            return
        elif self._scope.execution is None:
            self._enter(Node("program", self._label[0] if self._label is not None else self.name), given)
        elif (module := self._module(is_named=not self.name.startswith(_WRAPPERS))) is not None:
            self._enter(Node("module", module), given)

    def begin_call(self, prompt: Any, *, is_named: bool) -> None:
        """Begin the execution that a model's run is in, where no run around it is that.

        Args:
            prompt: the messages.
            is_named: the program has given the run its name.
        """
        if (module := self._module(is_named=is_named)) is not None:
            self._enter(Node("module", module), prompt)
        elif self._key:
            self._parting()._enter(Node("module", self._module_around), {})

    def end(self, given: Any, error: BaseException | None) -> None:
        """End the execution that the run is, if it is one."""
        if self.execution is not None:
            self.execution.end(given, error=error)

    def _module(self, *, is_named: bool) -> str | None:
        """The module that begins here; None where the one around goes on."""
        if self._label is None:
            return self.name if is_named else None
        inherited = self._parent._label if self._parent is not None else None
        return self._label[0] if self._label != inherited else None

    def _enter(self, node: Node, given: Any) -> None:
        arguments = given if isinstance(given, Mapping) else {"input": given}
        key = self._key or _place_in_a_fan(self.metadata)
        self.execution = node.enter(
            {str(name): value for name, value in arguments.items()}, key=key, context=self.context
        )

    @property
    def _scope(self) -> Scope:
        return current_scope(session.active, self.context)

    @property
    def _module_around(self) -> str:
        execution = self._scope.execution
        return execution.module if execution is not None else self._parting().name

    @property
    def _key(self) -> str:
        """What tells the parallel branches that the run is in apart, up to the execution around them."""
        if self.execution is not None:
            return ""
        above = self._parent._key if self._parent is not None else ""
        return "/".join(key for key in (above, self._branch) if key)

    def _parting(self) -> Run:
        """The run that is the innermost branch."""
        run = self
        while not run._branch and run._parent is not None:
            run = run._parent
        return run


def _label(tags: Sequence[str], metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """The module's name, and where in a graph the node is that gives it."""
    if metadata.get("module_id"):
        return str(metadata["module_id"]), ""
    for tag in tags:
        if tag.startswith(_TAG):
            return tag.removeprefix(_TAG), ""
    if metadata.get("langgraph_node"):
        return str(metadata["langgraph_node"]), str(metadata.get("langgraph_checkpoint_ns"))
    return None


def _place_in_a_fan(metadata: Mapping[str, Any]) -> str:
    """The ordinal of a node among those that one step of LangGraph sent work to."""
    path = metadata.get("langgraph_path") or ()
    if path and path[0] == _PUSH:
        return next((str(place) for place in path[1:] if isinstance(place, int) and not isinstance(place, bool)), "")
    return ""
