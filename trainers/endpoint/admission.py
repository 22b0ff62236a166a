"""Who is decoded next: the rows that wait, and how many tokens rows may hold at once.

Rows are held in a rectangle, as many slots as rows and as long as the longest. A row is
not promised room for all the tokens that it may draw, since few draw them all: where the
rows outgrow the rectangle, some are paused, and computed again when there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence

from tracetune.trainers.endpoint.prefixes import Prompt
from tracetune.trainers.endpoint.rows import Row

# New prompt tokens that are prefilled between two tokens of the rows being decoded, so
# that a burst of prompts does not hold those up.
PREFILL_TOKENS_BETWEEN = 1024
# A row is admitted where it can grow by so many tokens before the cache is full.
HEADROOM = 64


class Admission:
    """The rows that are not being decoded.

    Args:
        max_rows: how many rows are decoded at once.
        row_tokens: how many tokens they may hold; one row alone may exceed it.

    Attributes:
        waiting: rows that have not begun, the next one first.
        paused: rows that have, and that go on before any other begins.
    """

    def __init__(self, *, max_rows: int, row_tokens: int) -> None:
        self.max_rows = max_rows
        self.waiting: deque[Row] = deque()
        self.paused: deque[Row] = deque()
        self._row_tokens = row_tokens

    def take(self, active: Sequence[Row], known: Container[object], *, held: bool) -> tuple[list[Row], list[Row]]:
        """The rows to admit now, and those whose client has left meanwhile.

        Args:
            active: the rows being decoded.
            known: prompts that need not be prefilled.
            held: whether somebody wants the model; only paused rows go on then, since
                weights may not change under them.
        """
        rows: list[Row] = []
        left: list[Row] = []
        prompts: set[Prompt] = set()
        new_tokens = 0
        longest = max((row.length_after(HEADROOM) for row in active), default=0)
        while len(active) + len(rows) < self.max_rows:
            queue = self.paused or (deque() if held else self.waiting)
            if not queue:
                break
            row = queue[0]
            if row.cancelled:
                left.append(queue.popleft())
                continue
            longest = max(longest, row.length_after(HEADROOM))
            if not self._fit(len(active) + len(rows) + 1, longest):
                break
            prompt = prompt_of(row)
            if prompt not in prompts and prompt not in known:
                new_tokens += len(prompt.ids)
                if active and rows and new_tokens > PREFILL_TOKENS_BETWEEN:
                    break
            prompts.add(prompt)
            rows.append(queue.popleft())
        return rows, left

    def pause(self, active: Sequence[Row]) -> list[int]:
        """Pause rows that would outgrow the cache, those first that cost least to compute again.

        Returns:
            The indices of the rows that go on.
        """
        kept = list(range(len(active)))
        while not self._fit(len(kept), 1 + max(active[slot].position for slot in kept)):
            least = min(kept, key=lambda slot: len(active[slot].completion_ids))
            kept.remove(least)
            self.paused.append(active[least])
        return kept

    def _fit(self, rows: int, longest: int) -> bool:
        return rows == 1 or rows * longest <= self._row_tokens


def prompt_of(row: Row) -> Prompt:
    """What must be prefilled of a row; of one that was paused, what has been drawn as well."""
    return Prompt(row.adapter or "", row.token_ids)
