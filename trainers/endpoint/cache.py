"""The keys and values of the rows being decoded: one slot a row, grown and compacted in place.

A row's token at position p lies at index p of its slot, whatever the other rows do, so
rows of different length need no padding tokens; what lies beyond a row's length is hidden
by the mask. transformers' own growing cache copies every key and value at each token;
this one writes the new ones into buffers that grow by half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """A prompt that has been prefilled.

    Attributes:
        length: how many tokens it has.
        keys: of each layer, [heads, at least `length` positions, head size].
        values: likewise.
        logits_V: what the model says of the token after it, float32.
    """

    length: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    logits_V: torch.Tensor


class RowCache(Cache):
    """A transformers cache whose rows come and go between tokens.

    The rows in use are always slots 0 to `rows` - 1 of each layer's buffers, which are
    [slots, heads, positions, head size]. Call `place` before each forward pass of one
    token a row.

    Args:
        budget: how many positions all slots may have together; buffers never grow past it
            unless the rows themselves need more.
    """

    def __init__(self, budget: int) -> None:
        super().__init__(layers=[])
        self._budget = budget
        self.rows = 0
        self.span = 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._slots_B = torch.empty(0, dtype=torch.long)
        self._positions_B = torch.empty(0, dtype=torch.long)

    def admit(self, prefixes: Sequence[Prefix]) -> None:
        """Give each prefix a slot of its own, after those in use."""
        if not self._keys:
            self._keys = [_zeros_like(keys[None], 0, 0) for keys in prefixes[0].keys]
            self._values = [_zeros_like(values[None], 0, 0) for values in prefixes[0].values]
        first = self.rows
        self.rows += len(prefixes)
        self._reserve(max(prefix.length for prefix in prefixes))
        for slot, prefix in enumerate(prefixes, start=first):
            for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                self._keys[layer][slot, :, : prefix.length] = keys[:, : prefix.length]
                self._values[layer][slot, :, : prefix.length] = values[:, : prefix.length]

    def place(self, positions: Sequence[int]) -> torch.Tensor:
        """Say at which position each row's next token stands; gives them as a tensor, [rows]."""
        device = self._keys[0].device
        self.span = max(positions) + 1
        self._positions_B = torch.tensor(positions, device=device)
        self._slots_B = torch.arange(self.rows, device=device)
        self._reserve(self.span)
        return self._positions_B

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one new token a row at its position; gives all of the rows' keys and values."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._slots_B, :, self._positions_B] = key_states[:, :, 0]
        values[self._slots_B, :, self._positions_B] = value_states[:, :, 0]
        return keys[: self.rows, :, : self.span], values[: self.rows, :, : self.span]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many positions the longest row had before the token that is placed."""
        return self.span - 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How long a mask is, and where it starts."""
        return self.span, 0

    def keep(self, slots: Sequence[int]) -> list[int]:
        """Keep only those slots, moved together with as few copies as can be.

        Returns:
            Which of the old slots each of the new ones was.
        """
        kept = set(slots)
        order = list(range(len(slots)))
        holes = [slot for slot in order if slot not in kept]
        moved = [slot for slot in slots if slot >= len(slots)]
        for hole, slot in zip(holes, moved, strict=True):
            order[hole] = slot
        if holes:
            for buffer in [*self._keys, *self._values]:
                buffer[holes, :, : self.span] = buffer[moved, :, : self.span]
        self.rows = len(slots)
        return order

    def release(self) -> None:
        """Drop all rows and give the memory back."""
        self.rows = self.span = 0
        self._keys, self._values = [], []

    def _reserve(self, positions: int) -> None:
        """Make room for `rows` rows of so many positions, and keep what the buffers hold."""
        slots, _, room, _ = self._keys[0].shape
        if self.rows <= slots and positions <= room:
            return
        if self.rows > slots:
            slots = max(self.rows, slots + slots // 2)
        if positions > room:
            room = max(positions, room + room // 2, 64)
        if slots * room > self._budget:
            slots, room = self.rows, max(positions, self._budget // self.rows)
        # One buffer after the other, so that no more than one stands twice.
        for buffers in (self._keys, self._values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = _resized(buffer, slots, room)


def _zeros_like(states: torch.Tensor, slots: int, positions: int) -> torch.Tensor:
    # Zeros, not empty memory: a hidden position weighs nothing, but nothing times NaN is NaN.
    return states.new_zeros((slots, states.shape[1], positions, states.shape[3]))


def _resized(buffer: torch.Tensor, slots: int, positions: int) -> torch.Tensor:
    resized = _zeros_like(buffer, slots, positions)
    held = buffer[:slots, :, :positions]
    resized[: held.shape[0], :, : held.shape[2]] = held
    return resized
