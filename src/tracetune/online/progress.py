"""What a person sees while a policy trains: a live line on a terminal, a line a step elsewhere.

It writes to standard error, so that a program's own output stays clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tracetune.redaction import redacted_text
from tracetune.terminal import printable
from tracetune.types import Evaluation, Rollout

_BARS = "▁▂▃▄▅▆▇█"


def live_bars(console: Console, *, shown: bool) -> Progress:
    """Bars with a description, a count, the time and some figures; on a terminal alone."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        disable=not shown or not console.is_terminal,
    )


class ProgressDisplay:
    """A progress bar of the steps and of the rollouts of the present one, with the reward so far.

    Args:
        run: its name, shown in front.
        steps: how many steps there will be.
        first: how many of them were done before.
        shown: False shows nothing at all.
    """

    def __init__(self, run: str, steps: int, *, first: int = 0, shown: bool = True) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._rewards: list[float] = []
        self._steps = steps
        self._progress = live_bars(self._console, shown=shown)
        self._step_bar = self._progress.add_task(escape(run), total=steps, completed=first, figures="")
        self._rollout_bar = self._progress.add_task("rollouts", total=None, figures="", visible=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._rollout_bar, visible=False)
        self._progress.stop()
        if kind is KeyboardInterrupt:
            self._console.print("interrupted; resume=True (--resume) goes on after the last finished step")

    @contextmanager
    def rollouts(self, split: str, step: int, total: int) -> Iterator[Callable[[Rollout], None]]:
        """Show a set of rollouts while it is made; gives the function to call as each ends."""
        self._progress.reset(self._rollout_bar, total=total, description=f"{split} rollouts", figures="", visible=True)
        yield lambda _rollout: self._progress.advance(self._rollout_bar)
        self._progress.update(self._rollout_bar, visible=False)

    def step(self, step: int, figures: dict[str, float]) -> None:
        """Show the figures of a finished step."""
        self._rewards.append(figures["reward"])
        text = (
            f"reward {figures['reward']:.3f} {sparkline(self._rewards[-30:])} "
            f"groups {figures['groups']:.0f} grad {figures['grad_norm']:.2f}"
        )
        self._progress.update(self._step_bar, completed=step, figures=text)
        if not self._console.is_terminal:
            self._console.print(f"step {step}/{self._steps} {text} {figures['seconds']:.1f} s", highlight=False)

    def notice(self, text: str) -> None:
        """Show a line of what goes on in a step that takes long."""
        self._console.print(escape(printable(redacted_text(text))), highlight=False)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Show how a policy did on the validation set."""
        failed = f", {evaluation.failed} failed" if evaluation.failed else ""
        self._console.print(
            f"held-out reward after step {step}: {evaluation.reward:.3f} ({evaluation.n} examples{failed})",
            highlight=False,
        )


def sparkline(values: list[float]) -> str:
    """The values as bars from the lowest to the highest.

    Example:
        >>> sparkline([0.0, 0.5, 1.0])
        '▁▅█'
        >>> sparkline([])
        ''
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    if high == low:
        return _BARS[0] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)
