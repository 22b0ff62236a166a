"""Values of a program as JSON text: bounded, without secrets, whatever they are.

The common case is one `orjson.dumps` of plain values that are small and name no secret.
All others are copied into plain ones first, within a budget of bytes, so that an
enormous value costs no more than its beginning. Nothing a program passes around can make
this raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import orjson

from tracetune import redaction
from tracetune.redaction import LONGEST_NAME as _LONGEST
from tracetune.redaction import Redacted
from tracetune.redaction import is_clean as _is_clean
from tracetune.tracer import values
from tracetune.tracer.interrupts import is_interrupt
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


class Kept(NamedTuple):
    """What is kept of a text.

    Attributes:
        is_cut: it is less than all.
        is_redacted: it was changed, by our rules or by the hook.
    """

    text: str
    is_cut: bool
    is_redacted: bool


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

    def json(self, value: object, limit: int = VALUE_LIMIT) -> tuple[str, bool]:
        """The value as JSON text, and whether it was shortened to about `limit` bytes.

        Args:
            value: anything.
            limit: in bytes of JSON.
        """
        kept = self._at_once(value, limit, is_message=False)
        if kept is not None:
            return kept, False
        text, is_shortened, _ = self._copied(value, limit, is_message=False)
        return text, is_shortened

    def messages(self, messages: object) -> Kept:
        """A prompt or an answer as JSON text: what is learned from, so whoever records it must say that it was changed.

        Of texts in it that are JSON documents only what looks like a secret is replaced, not all that has a name.
        """
        kept = self._at_once(messages, MESSAGES_LIMIT, is_message=True)
        return self._copied(messages, MESSAGES_LIMIT, is_message=True) if kept is None else Kept(kept, False, False)

    def _at_once(self, value: object, limit: int, *, is_message: bool) -> str | None:
        """The value as JSON, where it is as plain as most are."""
        text = b""
        try:
            if self._redact is None and _is_plain(value, limit, is_message):
                text = orjson.dumps(value)
        except BaseException as error:  # half a surrogate pair, a number beyond 64 bits, a type that is not hashable
            if is_interrupt(error):
                raise
        return Redacted(text, "utf-8") if 0 < len(text) <= limit else None

    def _copied(self, value: object, limit: int, *, is_message: bool) -> Kept:
        copy = _PlainCopy(limit, self, is_message)
        return Kept(Redacted(orjson.dumps(copy.of(value)), "utf-8"), copy.is_shortened, copy.is_redacted)

    def text(self, text: str, limit: int = MESSAGES_LIMIT) -> str:
        """One text, without secrets, as UTF-8 can express it and as the redaction hook wants it, cut to `limit`."""
        kept = self.cut(text, limit)
        return Redacted(kept.text + "…" if kept.is_cut else kept.text)

    def exception_text(self, text: str, limit: int = VALUE_LIMIT) -> str:
        """What an exception says of itself: it may show values, or echo a key that a server was sent."""
        kept = self.cut(text, limit, redacted=redaction.redacted_repr)
        return Redacted(kept.text + "…" if kept.is_cut else kept.text)

    def cut(self, text: str, limit: int, redacted: Redact = redaction.redacted_text) -> Kept:
        """What a text keeps.

        Args:
            text: as it is.
            limit: in characters.
            redacted: gives it without its secrets.
        """
        # With a hook, as much of it as the hook is promised; else no more than can be kept, and what may be a secret
        # that goes on beyond.
        room = MESSAGES_LIMIT if self._redact is not None else min(limit, MESSAGES_LIMIT)
        seen = values.speakable(text[: room + _MARGIN])
        clean = redacted(seen)
        if self._redact is not None:
            clean = self._redacted(clean)
        return Kept(clean[:limit], len(clean) > limit or len(text) > room + _MARGIN, clean != seen)

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


def _is_plain(value: object, limit: int, is_message: bool) -> bool:
    """Whether a value is small, JSON through and through, and holds no secret: a quick look that may say no."""
    if type(value) is str and value[:1] not in _JSON_OPENINGS:
        return len(value) <= limit and _is_clean(value)
    waiting: list[Any] = [value]
    for seen, item in enumerate(waiting):  # which grows meanwhile
        kind = type(item)
        if kind is str:
            limit -= len(item)
            if limit < 0 or not _is_clean(item):
                return False
            if item[:1] in _JSON_OPENINGS and not is_message and redaction.may_name_secret(item):
                return False
        elif kind is dict:
            limit -= 4 * len(item)
            if limit < 0:
                return False
            for name, part in item.items():
                if type(name) is not str or len(name) > _LONGEST or not _is_harmless(name):
                    return False
                limit -= len(name)
                if type(part) is str and part[:1] not in _JSON_OPENINGS:
                    limit -= len(part)
                    if limit < 0 or not _is_clean(part):
                        return False
                else:
                    waiting.append(part)
            if "value" in item and _is_named_secret(item):
                return False
        elif kind is list or kind is tuple:
            limit -= 2 * len(item)
            # A list of two may be the name of a header and its value.
            if limit < 0 or (len(item) == 2 and redaction.secret_pair(item)):
                return False
            waiting += item
        elif kind not in _SCALARS:
            return False
        if limit < 0 or seen > _QUICK_LOOK:
            return False
    return True


@lru_cache(maxsize=4096)
def _is_harmless(name: str) -> bool:
    """Whether a short name is not a secret's, nor a secret itself."""
    return not redaction.ends_secret(name) and _is_clean(name)


def _is_named_secret(mapping: Mapping[Any, Any]) -> bool:
    """Whether a mapping has the name of a secret beside a `value`, as some lists of headers do."""
    name = mapping.get("name", mapping.get("key"))
    return isinstance(name, str) and redaction.is_secret(name)


# A blank may stand before a document.
_JSON_OPENINGS = frozenset("{[ \t\r\n")
_SCALARS = frozenset((int, float, bool, type(None)))
_PLAIN_ITEMS = frozenset((list, tuple, type({}.items())))


class _PlainCopy:
    """Copies values into what JSON knows, until a budget of bytes is spent."""

    def __init__(self, limit: int, capture: Capture, is_message: bool) -> None:
        self.is_shortened = False
        self.is_redacted = False
        self._left = limit
        self._cut = capture.cut
        self._is_message = is_message
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
            return self._bounded(known.text, redaction.redacted_repr)
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
        is_named = type(mapping) is dict and "value" in mapping and _is_named_secret(mapping)
        for key, item in self._affordable(mapping.items()):
            if self._left <= 0:
                self.is_shortened = True
                break
            self._left -= 5
            text = values.key_text(key)
            name = self._bounded(text)
            if name != text and name in plain:  # two names that held a secret, or began alike
                name = f"{name} {len(plain)}"
            is_secret = redaction.is_secret(name) or redaction.is_secret(text) or (is_named and name == "value")
            plain[name] = self._hidden() if is_secret and redaction.may_be_secret(item) else self.of(item, depth + 1)
        return plain

    def _items(self, items: Iterable[Any], depth: int) -> list[Any]:
        plain = []
        for item in self._affordable(items):
            if self._left <= 0:
                self.is_shortened = True
                break
            self._left -= 1
            if redaction.secret_pair(item):
                plain.append([self.of(item[0], depth + 1), self._hidden()])
            else:
                plain.append(self.of(item, depth + 1))
        return plain

    def _hidden(self) -> str:
        self.is_redacted = True
        self._left -= len(redaction.REDACTED)
        return redaction.REDACTED

    def _affordable(self, items: Iterable[Any]) -> Iterable[Any]:
        """As many items as the budget can pay for, and one more."""
        some = islice(items, max(self._left, 0) // 2 + 2)
        # Those of a plain value are taken at once, since another thread may change it; those of others may be lazy.
        return list(some) if type(items) in _PLAIN_ITEMS else some

    def _bounded(self, text: str, redacted: Redact | None = None) -> str:
        left = max(self._left, 0)
        if redacted is None:
            is_document = not self._is_message and redaction.is_json(text)
            redacted = redaction.redacted_json if is_document else redaction.redacted_text
        kept, is_cut, is_redacted = self._cut(text, left, redacted)
        self.is_redacted = self.is_redacted or is_redacted
        size = len(orjson.dumps(kept)) - 2
        while size > left:  # what is escaped, or not ASCII, is longer than its characters
            kept, is_cut = kept[: len(kept) * left // size], True
            size = len(orjson.dumps(kept)) - 2
        self._left -= size
        self.is_shortened = self.is_shortened or is_cut
        return kept + "…" if is_cut else kept
