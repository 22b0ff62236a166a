"""The text of a row as it grows: decoded a few tokens at a time, cut at its stop strings.

Decoding one token alone gives wrong text where characters span tokens and where a
tokenizer puts spaces between words, so a few tokens before it are decoded with it and
taken away again.
"""

from __future__ import annotations

from collections.abc import Callable

Decode = Callable[[list[int]], str]

_UNFINISHED = "\ufffd"  # what a decoder shows for the first bytes of a character


class GrowingText:
    """The text of a completion, token by token.

    Example:
        >>> text = GrowingText(lambda ids: "".join("abc"[i] for i in ids), stop=("bc",))
        >>> [text.add(0), text.add(1), text.add(2)]
        [False, False, True]
        >>> text.take(finished=True)
        'a'
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self._decode = decode
        self._stop = stop
        self._longest_stop = max((len(string) for string in stop), default=0)
        self._ids: list[int] = []
        self._context = 0  # where the tokens that are decoded again begin
        self._read = 0  # where the tokens whose text is not settled begin
        self._taken = 0
        self.text = ""

    def add(self, token: int) -> bool:
        """Add a token; gives whether a stop string is now complete, and then the text is cut before it."""
        self._ids.append(token)
        return self._grow(finished=False)

    def finish(self) -> None:
        """No token follows: what looked like half a character is text."""
        self._grow(finished=True)

    def take(self, *, finished: bool) -> str:
        """The text that has not been taken yet, but for what could be the beginning of a stop string."""
        end = len(self.text) if finished else len(self.text) - self._held_back()
        piece = self.text[self._taken : end]
        self._taken = max(end, self._taken)
        return piece

    def _grow(self, *, finished: bool) -> bool:
        known = self._decode(self._ids[self._context : self._read])
        longer = self._decode(self._ids[self._context :])
        if len(longer) <= len(known) or (longer.endswith(_UNFINISHED) and not finished):
            return False
        search_from = max(0, len(self.text) - self._longest_stop + 1)
        self.text += longer[len(known) :]
        self._context, self._read = self._read, len(self._ids)
        ends = [at for string in self._stop if (at := self.text.find(string, search_from)) >= 0]
        if ends:
            self.text = self.text[: min(ends)]
        return bool(ends)

    def _held_back(self) -> int:
        for length in range(min(self._longest_stop - 1, len(self.text)), 0, -1):
            tail = self.text[-length:]
            if any(string.startswith(tail) for string in self._stop):
                return length
        return 0
