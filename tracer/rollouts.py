"""Rollouts: one execution of a program on an example.

A `rollout` block gives the next program execution its identity; a program that is called
outside any makes its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context

from tracetune.errors import TracetuneError
from tracetune.tracer import session, sources
from tracetune.tracer.handles import RolloutHandle
from tracetune.tracer.scope import Scope, current_scope, with_scope
from tracetune.tracer.setting import Setting
from tracetune.types import Policy


def new_rollout(
    example_id: str | None = None,
    *,
    id: str | None = None,  # noqa: A002  a rollout's id is its id
    run: str | None = None,
    split: str | None = None,
    step: int | None = None,
    index: int = 0,
    policy: Policy | None = None,
) -> RolloutHandle:
    """A rollout that has not started; `entered` makes it the one that code runs in. Arguments as of `rollout`."""
    outer = current_scope(session.active)
    setting = Setting(
        session.active,
        outer.setting.run if run is None else run,
        outer.setting.split if split is None else split,
        outer.setting.step if step is None else step,
        outer.setting.policy if policy is None else policy,
        outer.setting.sample,
    )
    return RolloutHandle(setting, id=id or sources.new_id(), example_id=example_id, index=index)


@contextmanager
def entered(handle: RolloutHandle) -> Iterator[None]:
    """Run what is inside in a rollout, which ends with the block."""
    token = otel_context.attach(with_scope(Scope(handle.setting, handle, handle.executions)))
    try:
        yield
    except BaseException as error:
        handle.block_ended(error)
        raise
    else:
        handle.block_ended(None)
    finally:
        otel_context.detach(token)


@contextmanager
def rollout(
    example_id: str | None = None,
    *,
    id: str | None = None,  # noqa: A002  a rollout's id is its id
    run: str | None = None,
    split: str | None = None,
    step: int | None = None,
    index: int = 0,
    policy: Policy | None = None,
) -> Iterator[RolloutHandle]:
    """Give the program that is called inside its identity, and what happens there one outcome.

    Args:
        example_id: the example's name; by default a hash of the program's arguments.
        id: the rollout's name; random by default.
        run: as in `recording`, and like split, step and policy the recording's by default.
        split: "train", "val" or None.
        step: the training step that makes it.
        index: its 0-based place among the rollouts of its example.
        policy: what `policy` gives inside.

    Example:
        >>> with rollout(example_id="q17") as this:
        ...     pass
        >>> this.as_rollout().status
        'ok'
    """
    handle = new_rollout(example_id, id=id, run=run, split=split, step=step, index=index, policy=policy)
    with entered(handle):
        yield handle


def policy() -> Policy:
    """The policy in force: where it answers, its model's name, its version and its prompt texts.

    Raises:
        TracetuneError: if there is none.

    Example:
        >>> with rollout(policy=Policy("http://127.0.0.1:8000/v1", "key", "policy", "try-1@0")):
        ...     policy().version
        'try-1@0'
    """
    found = current_scope(session.active).setting.policy
    if found is None:
        raise TracetuneError(
            "no policy is in force here; call the program from tt.optimize, or inside a rollout(policy=…)"
        )
    return found
