"""Values of a program as JSON text: bounded, without secrets, whatever they are.

The common case is one `orjson.dumps` of plain values that are small and name no secret.
All others are copied into plain ones first, within a budget of bytes, so that an
enormous value costs no more than its beginning. Nothing a program passes around can make
this raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import orjson

from tracetune.tracer import redaction, values
from tracetune.tracer.interrupts import is_interrupt
from tracetune.tracer.redaction import LONGEST_NAME as _LONGEST
from tracetune.tracer.redaction import ends_secret as _ends_secret
from tracetune.tracer.warn import warn

VALUE_LIMIT = 64 * 1024
# Messages are what is learned from: cut only where something has gone wrong.
MESSAGES_LIMIT = 1024 * 1024

_DEPTH_LIMIT = 64
# How much more of a text is searched for secrets than there is room for.
_MARGIN = 4096
# What a quick look goes through before a value is taken for large.
_QUICK_LOOK = 4096

Redact = Callable[[str], str]


class Capture:
    """Turns values into JSON text.

    Args:
        redact: given every text that is to be kept, up to `MESSAGES_LIMIT` characters of
            it, gives the one to keep in its place.

    Example:
        >>> Capture().json({"user": "ann", "password": "hunter2"})
        ('{"user":"ann","password":"[redacted]"}', False)
    """

    def __init__(self, redact: Redact | None = None) -> None:
        self._redact = redact
        self._has_warned = False

    def json(self, value: object, limit: int = VALUE_LIMIT, *, is_verbatim: bool = False) -> tuple[str, bool]:
        """The value as JSON text, and whether it was shortened to about `limit` bytes.

        Args:
            value: anything.
            limit: in bytes of JSON.
            is_verbatim: texts are kept to the letter, also those that are JSON with
                secrets in it: messages, which are what is learned from.
        """
        text = b""
        try:
            if self._redact is None and _is_plain(value, limit, is_verbatim):
                text = orjson.dumps(value)
        except BaseException as error:  # half a surrogate pair, a number beyond 64 bits, a type that is not hashable
            if is_interrupt(error):
                raise
        if 0 < len(text) <= limit:
            return text.decode(), False
        copy = _PlainCopy(limit, self.cut, is_verbatim)
        return orjson.dumps(copy.of(value)).decode(), copy.is_shortened

    def text(self, text: str, limit: int = MESSAGES_LIMIT) -> str:
        """One text, as UTF-8 can express it and as the redaction hook wants it, cut to `limit` characters."""
        seen, is_cut = self.cut(text, limit)
        return seen + "…" if is_cut else seen

    def cut(self, text: str, limit: int) -> tuple[str, bool]:
        """What `text` keeps, and whether it is less than all."""
        seen = values.speakable(text[:MESSAGES_LIMIT])
        if self._redact is not None:
            seen = self._redacted(seen)
        return seen[:limit], len(seen) > limit or len(text) > MESSAGES_LIMIT

    def _redacted(self, text: str) -> str:
        assert self._redact is not None  # the caller looked
        try:
            return values.speakable(str(self._redact(text)))
        except BaseException as error:  # the hook is the user's, and what it could not see must not be kept
            if is_interrupt(error):
                raise
            if not self._has_warned:
                self._has_warned = True
                warn(f"the redact function raised {values.type_name(error)}; such texts are left out, mend it")
            return redaction.REDACTED


def _is_plain(value: object, limit: int, is_verbatim: bool) -> bool:
    """Whether a value is small, JSON through and through, and names no secret: a quick look that may say no."""
    if type(value) is str and value[:1] not in _JSON_OPENINGS:
        return len(value) <= limit
    waiting: list[Any] = [value]
    for seen, item in enumerate(waiting):  # which grows meanwhile
        kind = type(item)
        if kind is str:
            limit -= len(item)
            if item[:1] in _JSON_OPENINGS and not is_verbatim and redaction.may_name_secret(item):
                return False
        elif kind is dict:
            limit -= 4 * len(item)
            if limit < 0:
                return False
            for name, part in item.items():
                if type(name) is not str or _ends_secret(name[-_LONGEST:]):
                    return False
                limit -= len(name)
                if type(part) is str and part[:1] not in _JSON_OPENINGS:
                    limit -= len(part)
                else:
                    waiting.append(part)
        elif kind is list or kind is tuple:
            limit -= 2 * len(item)
            if limit < 0:
                return False
            waiting += item
        elif kind not in _SCALARS:
            return False
        if limit < 0 or seen > _QUICK_LOOK:
            return False
    return True


_JSON_OPENINGS = frozenset("{[")
_SCALARS = frozenset((int, float, bool, type(None)))
_PLAIN_ITEMS = frozenset((list, tuple, type({}.items())))


class _PlainCopy:
    """Copies values into what JSON knows, until a budget of bytes is spent."""

    def __init__(self, limit: int, cut: Callable[[str, int], tuple[str, bool]], is_verbatim: bool) -> None:
        self.is_shortened = False
        self._left = limit
        self._cut = cut
        self._is_verbatim = is_verbatim
        self._open: set[int] = set()

    def of(self, value: Any, depth: int = 0) -> Any:
        try:
            return self._of(value, depth)
        except BaseException as error:  # a hostile value: its place is kept, with what it did
            if is_interrupt(error):
                raise
            return self._bounded(f"<{values.type_name(value)}: {values.type_name(error)} while it was captured>")

    def _of(self, value: Any, depth: int) -> Any:
        self._left -= 2
        kind = type(value)
        if kind is str:
            return self._bounded(value)
        if value is None or kind is bool:
            self._left -= 3
            return value
        if kind is int and -(2**63) <= value < 2**64:
            self._left -= value.bit_length() // 3
            return value
        if kind is int:
            return self._bounded(str(value))
        if kind is float:
            self._left -= len(repr(value))
            return value  # orjson writes null for what is not finite
        if kind is dict or kind is list or kind is tuple:
            return self._parts(value, value, depth)
        known = values.simplified(value)
        if isinstance(known, values.Shown):
            return self._bounded(redaction.redacted_repr(known.text[:MESSAGES_LIMIT]), is_repr=True)
        if type(known) in (values.Named, values.Items):
            return self._parts(value, known.content, depth)
        return self._of(known, depth)

    def _parts(self, value: Any, content: Any, depth: int) -> Any:
        if id(value) in self._open or depth >= _DEPTH_LIMIT:
            self.is_shortened = True
            return self._bounded("<cycle>" if id(value) in self._open else "<too deep>")
        self._open.add(id(value))
        try:
            return self._named(content, depth) if isinstance(content, Mapping) else self._items(content, depth)
        finally:
            self._open.discard(id(value))

    def _named(self, mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, item in self._affordable(mapping.items()):
            if self._left <= 0:
                self.is_shortened = True
                break
            self._left -= 5
            text = values.key_text(key)
            name = self._bounded(text, is_repr=True)
            is_secret = redaction.is_secret(name) or redaction.is_secret(text)
            plain[name] = self._bounded(redaction.REDACTED) if is_secret else self.of(item, depth + 1)
        return plain

    def _items(self, items: Iterable[Any], depth: int) -> list[Any]:
        plain = []
        for item in self._affordable(items):
            if self._left <= 0:
                self.is_shortened = True
                break
            self._left -= 1
            plain.append(self.of(item, depth + 1))
        return plain

    def _affordable(self, items: Iterable[Any]) -> Iterable[Any]:
        """As many items as the budget can pay for, and one more."""
        some = islice(items, max(self._left, 0) // 2 + 2)
        # Those of a plain value are taken at once, since another thread may change it; those of others may be lazy.
        return list(some) if type(items) in _PLAIN_ITEMS else some

    def _bounded(self, text: str, *, is_repr: bool = False) -> str:
        left = max(self._left, 0)
        if not self._is_verbatim and not is_repr and redaction.is_json(text):
            text = redaction.redacted_json(text[: left + _MARGIN])
        kept, is_cut = self._cut(text, left)
        size = len(orjson.dumps(kept)) - 2
        while size > left:  # what is escaped, or not ASCII, is longer than its characters
            kept, is_cut = kept[: len(kept) * left // size], True
            size = len(orjson.dumps(kept)) - 2
        self._left -= size
        self.is_shortened = self.is_shortened or is_cut
        return kept + "…" if is_cut else kept
