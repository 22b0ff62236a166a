"""What a person sees while stored groups are trained on: a live line on a terminal, a line a step elsewhere."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from tracetune.offline.batches import SINGLETONS, StoredGroups
from tracetune.online.progress import live_bars
from tracetune.redaction import redacted_text
from tracetune.types import Evaluation, Likelihood, StepReport


class StepDisplay:
    """The steps of one training, on standard error.

    Args:
        run: its name, shown in front.
        steps: how many there will be.
        first: how many of them were done before.
        shown: False shows nothing at all.
    """

    def __init__(self, run: str, steps: int, *, first: int, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown, highlight=False)
        self._steps = steps
        self._progress = live_bars(self._console, shown=shown)
        self._bar = self._progress.add_task(escape(run), total=steps, completed=first, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if kind is KeyboardInterrupt:
            self._console.print("interrupted; resume=True (--resume) goes on after the last checkpoint")

    def groups(self, groups: StoredGroups) -> None:
        """Say what there is to train on, and what is left out."""
        if groups.grouping is SINGLETONS:
            self._console.print("no example was answered twice: calls of a module are compared across examples")
        train, held_out = groups.train, groups.held_out
        self._console.print(
            f"{train.n_members} calls in {len(train)} groups to train on, {held_out.n_members} in {len(held_out)} held "
            f"out; {self._steps} steps"
        )
        reasons = Counter((item.kind, item.reason) for item in train.left_out)
        if reasons:
            counted = ", ".join(f"{count} {kind}s {reason}" for (kind, reason), count in reasons.most_common())
            self._console.print(f"left out: {counted}")

    def step(self, report: StepReport) -> None:
        """Show the figures of a finished step."""
        skipped = sum(report.skipped.values())
        text = f"loss {report.loss:.4f} grad {report.grad_norm:.2f} used {report.used}" + (
            f" skipped {skipped}" if skipped else ""
        )
        self._progress.update(self._bar, completed=report.step, figures=text)
        if not self._console.is_terminal:
            self._console.print(f"step {report.step}/{self._steps} {text} {report.seconds:.1f} s")

    def notice(self, text: str) -> None:
        """Show a line of what goes on in a step that takes long."""
        self._console.print(redacted_text(text), markup=False)

    def measured(self, step: int, likelihood: Likelihood | None, evaluation: Evaluation | None) -> None:
        """Show what was measured between steps."""
        if likelihood is not None:
            good, bad = ("none" if value is None else f"{value:.3f}" for value in (likelihood.good, likelihood.bad))
            self._console.print(
                f"held-out log-likelihood after step {step}: good {good}, bad {bad} ({likelihood.members} calls)"
            )
        if evaluation is not None:
            self._console.print(f"held-out reward after step {step}: {evaluation.reward:.3f} ({evaluation.n} examples)")
