"""Scores: what a rollout, a call or a module's part was worth, said while it runs or long after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace

from tracetune.errors import InvalidInput
from tracetune.tracer import names, session
from tracetune.tracer.handles import RolloutHandle
from tracetune.tracer.invocations import Executions
from tracetune.tracer.sampling import is_sampled
from tracetune.tracer.scope import Scope, current_scope, with_scope
from tracetune.types import Score


def reward(
    value: object,
    *,
    rollout_id: str | None = None,
    call_id: str | None = None,
    module: str | None = None,
    name: str = "reward",
    source: str = "program",
    feedback: str = "",
) -> None:
    """Score the rollout that this is called in, or another rollout or call by its id.

    Args:
        value: a finite number, or a `Score`, whose feedback and module scores are kept too.
        rollout_id: another rollout's id.
        call_id: scores one call.
        module: scores one module's part in the rollout.
        name: which score it is; "reward" is the one that is learned from.
        source: who says so.
        feedback: the same in words.

    Raises:
        InvalidReward: if it is not a finite number.
        InvalidInput: if nothing says what is scored.

    Example:
        >>> reward(0.75, rollout_id="r1", feedback="right title, wrong year")
    """
    score = Score.of(value)
    recorder = session.active
    scope = current_scope(recorder)
    here = scope.rollout
    if rollout_id is None and call_id is None:
        if here is None:
            if recorder is None:
                return
            raise InvalidInput(
                "there is no rollout here to score; call reward inside one, or give rollout_id or call_id"
            )
        rollout_id = here.id
    if here is not None and here.id == rollout_id and call_id is None and module is None and name == "reward":
        here.scored(score.value)
    if recorder is None or not _is_kept(scope, rollout_id):
        return
    scored = [(module, score.value, feedback or score.feedback)]
    scored += [(part, number, "") for part, number in score.by_module.items()]
    for part, number, words in scored:
        recorder.spool.write_record(
            names.RECORD_SCORE,
            {
                "rollout_id": rollout_id,
                "call_id": call_id,
                "module": part,
                "name": name,
                "value": number,
                "source": source,
                "feedback": recorder.capture.text(words),
            },
            attributes={**scope.setting.attributes(), names.ROLLOUT_ID: rollout_id},
        )


@contextmanager
def scoring(handle: RolloutHandle | None = None) -> Iterator[None]:
    """What is called in here scores a rollout: LM calls are recorded as scores, and never grouped.

    Args:
        handle: the rollout that is scored, although it has ended; by default the one
            that this is called in, if any.

    Example:
        >>> from tracetune.tracer import rollout
        >>> with rollout(example_id="q17") as this:
        ...     pass
        >>> with scoring(this):
        ...     judge = 1.0
    """
    here = current_scope(session.active)
    if handle is not None:
        context = with_scope(Scope(handle.setting, handle, Executions(), call_kind="score"))
        if handle.root is not None:
            context = trace.set_span_in_context(trace.NonRecordingSpan(handle.root), context)
    elif here.call_kind == "score":
        context = with_scope(here)
    else:
        # Executions of its own: a score takes no turn of the module that it is asked for in.
        context = with_scope(Scope(here.setting, here.rollout, Executions(), call_kind="score"))
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def _is_kept(scope: Scope, rollout_id: str | None) -> bool:
    """Whether scores of a rollout are recorded: as the rollout itself is. What belongs to no rollout always is."""
    if scope.rollout is not None and rollout_id in (None, scope.rollout.id):
        return scope.rollout.is_sampled
    return rollout_id is None or is_sampled(rollout_id, scope.setting.sample)
