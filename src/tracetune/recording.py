"""`record` and `start_recording`: decorated functions and LM clients are recorded, in a block or until a stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from opentelemetry.sdk.trace import SpanProcessor

from tracetune import adapters, tracer
from tracetune.tracer import Recording, StartedRecording
from tracetune.tracer.recordings import warn_if_dropped


@contextmanager
def record(
    store: str | os.PathLike[str],
    *,
    run: str = "default",
    split: str | None = None,
    step: int | None = None,
    processors: Sequence[SpanProcessor] = (),
    redact: Callable[[str], str] | None = None,
    instrument: Sequence[str] | None = None,
    sample: float | None = None,
) -> Iterator[Recording]:
    """Record decorated functions and their LM calls to the spool beside a store.

    Inside another recording to the same store, only run, split, step and sample change.

    Args:
        store: path of the DuckDB file; it need not exist.
        run: the name that rollouts are recorded under.
        split: "train", "val" or None.
        step: the training step that makes the rollouts.
        processors: OpenTelemetry span processors that also receive every span.
        redact: given every captured text, gives the text to keep.
        instrument: the adapters to switch on meanwhile; by default OpenAI's, and those of the
            frameworks that the program has imported by now. One whose package is unlike what
            the adapter knows is warned of, and everything else is recorded.
        sample: the fraction of rollouts to record, from 0 to 1, each as a whole or not at
            all; by default the same as outside, where it is all of them.

    Yields:
        The recording: its `path`, its `counts`, and `flush()`.

    Raises:
        InvalidInput: if another store is being recorded to, there is no such adapter, or
            the sample is no fraction.
        MissingDependency: if an adapter's package is not installed.

    Example:
        >>> with record("traces.duckdb", run="try-1"):  # doctest: +SKIP
        ...     find("…")
    """
    with ExitStack() as undo:
        undo.enter_context(adapters.instrumented(instrument))
        recording = undo.enter_context(
            tracer.recording(
                store, run=run, split=split, step=step, processors=processors, redact=redact, sample=sample
            )
        )
        try:
            yield recording
        except GeneratorExit as end:
            warn_if_dropped(end, store)
            raise


def start_recording(
    store: str | os.PathLike[str],
    *,
    run: str = "default",
    split: str | None = None,
    step: int | None = None,
    processors: Sequence[SpanProcessor] = (),
    redact: Callable[[str], str] | None = None,
    instrument: Sequence[str] | None = None,
    sample: float | None = None,
) -> StartedRecording:
    """Record from now on, for services: in every thread, and in the processes that this one forks.

    The recording ends with `stop()`, or with the process. `record` may be used inside it, to
    the same store, for a block with a run of its own.

    Args:
        store: path of the DuckDB file; it need not exist.
        run: the name that rollouts are recorded under.
        split: "train", "val" or None.
        step: the training step that makes the rollouts.
        processors: OpenTelemetry span processors that also receive every span.
        redact: given every captured text, gives the text to keep.
        instrument: the adapters to switch on meanwhile; by default OpenAI's, and those of the
            frameworks that the program has imported by now.
        sample: the fraction of rollouts to record, from 0 to 1, each as a whole or not at all.

    Returns:
        The recording: its `path`, its `counts`, `flush()` and `stop()`.

    Raises:
        InvalidInput: if this process is recording already, there is no such adapter, or the
            sample is no fraction.
        MissingDependency: if an adapter's package is not installed.

    Example:
        >>> recording = start_recording("service.duckdb", run="production")
        >>> recording.stop()
    """
    with ExitStack() as undo:
        undo.enter_context(adapters.instrumented(instrument))
        kept = ExitStack()
        recording = tracer.start_recording(
            store,
            run=run,
            split=split,
            step=step,
            processors=processors,
            redact=redact,
            sample=sample,
            undo=kept.close,
        )
        kept.push(undo.pop_all())
    return recording
