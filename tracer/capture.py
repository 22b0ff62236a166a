"""Values of a program as JSON text: bounded, without secrets, whatever they are.

The common case is one `orjson.dumps`. Values that need care (too long, holding a secret,
or not JSON) are copied into plain ones first, within a budget of characters. Nothing a
program passes around can make this raise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Set
from functools import lru_cache
from typing import Any

import orjson

from tracetune.tracer.warn import warn

VALUE_LIMIT = 64 * 1024
# Messages are what is learned from: cut only where something has gone wrong.
MESSAGES_LIMIT = 1024 * 1024

REDACTED = "[redacted]"

_SECRET_NAMES = ("api_key", "apikey", "authorization", "password", "token", "secret")
# The end of such a key in JSON text, however it was spelt: `"OPENAI-API-KEY":`.
_SECRET_KEYS = tuple(f'{name}":'.encode() for name in (*_SECRET_NAMES, "api-key", "api key"))

_SCALARS = frozenset((str, int, float, bool, type(None)))

_DEPTH_LIMIT = 64

Redact = Callable[[str], str]


class Capture:
    """Turns values into JSON text.

    Args:
        redact: given every text that is to be kept, gives the one to keep in its place.

    Example:
        >>> Capture().json({"user": "ann", "password": "hunter2"})
        ('{"user":"ann","password":"[redacted]"}', False)
    """

    def __init__(self, redact: Redact | None = None) -> None:
        self._redact = redact
        self._has_warned = False

    def json(self, value: object, limit: int = VALUE_LIMIT) -> tuple[str, bool]:
        """The value as JSON text, and whether it was shortened to about `limit` characters."""
        if self._redact is None:
            try:
                text = orjson.dumps(value, default=_simplified)
            except Exception:  # noqa: BLE001  whatever a hostile value raises; the careful way below takes it
                text = b""
            if 0 < len(text) <= limit and (_is_plainly_clean(value) or not _names_a_secret(text)):
                return text.decode(), False
        copy = _PlainCopy(limit, self.text)
        plain = copy.of(value)
        return orjson.dumps(plain).decode(), copy.is_shortened

    def text(self, text: str) -> str:
        """One text, as UTF-8 can express it and as the redaction hook wants it."""
        text = text.encode("utf-8", "backslashreplace").decode()
        if self._redact is None:
            return text
        try:
            return str(self._redact(text))
        except Exception as error:  # noqa: BLE001  the hook is the user's, and what it could not see must not be kept
            if not self._has_warned:
                self._has_warned = True
                warn(f"the redact function raised {type(error).__name__} ({error}); such texts are left out, mend it")
            return REDACTED


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret: `api_key`, `X-Api-Key`, `access_token`, but not `max_tokens`."""
    return name.lower().replace("-", "_").replace(" ", "_").endswith(_SECRET_NAMES)


def _is_plainly_clean(value: object) -> bool:
    """Whether a value has no secret keys, as far as a quick look tells: texts, numbers, and mappings of them."""
    if type(value) is not dict:
        return type(value) in _SCALARS
    return all(type(item) in _SCALARS and not is_secret(name) for name, item in value.items())


def _names_a_secret(text: bytes) -> bool:
    lowered = text.lower()
    return any(key in lowered for key in _SECRET_KEYS)


def _simplified(value: Any) -> Any:
    """One step from a value that JSON does not know to one that it does."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set):
        return list(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    dump = getattr(type(value), "model_dump", None)  # pydantic's, without importing it
    return dump(value) if callable(dump) else repr(value)


class _PlainCopy:
    """Copies values into what JSON knows, until a budget of characters is spent."""

    def __init__(self, limit: int, text: Callable[[str], str]) -> None:
        self.is_shortened = False
        self._left = limit
        self._text = text
        self._open: set[int] = set()

    def of(self, value: Any, depth: int = 0) -> Any:
        try:
            return self._of(value, depth)
        except Exception as error:  # noqa: BLE001  a hostile value: its place is kept, with what it did
            return f"<{type(value).__name__}: {type(error).__name__} while it was captured>"

    def _of(self, value: Any, depth: int) -> Any:
        self._left -= 2
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._bounded(self._text(str(value)))
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**64 else self._bounded(str(value))
        if isinstance(value, float):
            return float(value)  # orjson writes null for what is not finite
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if not isinstance(value, Mapping | list | tuple):
            simple = self._known_to_orjson(value)
            if not isinstance(simple, Mapping | list | tuple):
                return self._of(simple, depth) if type(simple) is not type(value) else self._bounded(repr(value))
            value = simple
        if id(value) in self._open or depth >= _DEPTH_LIMIT:
            self.is_shortened = True
            return "<cycle>" if id(value) in self._open else "<too deep>"
        self._open.add(id(value))
        try:
            return self._mapping(value, depth) if isinstance(value, Mapping) else self._items(value, depth)
        finally:
            self._open.discard(id(value))

    def _known_to_orjson(self, value: Any) -> Any:
        """Times, ids and enums the way the short way writes them."""
        try:
            return orjson.loads(orjson.dumps(value))
        except TypeError:
            return _simplified(value)

    def _mapping(self, mapping: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, item in list(mapping.items()):
            if self._left <= 0:
                self.is_shortened = True
                break
            name = self._bounded(self._text(key if isinstance(key, str) else repr(key)))
            plain[name] = REDACTED if is_secret(name) else self.of(item, depth + 1)
        return plain

    def _items(self, items: Any, depth: int) -> list[Any]:
        plain = []
        for item in list(items):
            if self._left <= 0:
                self.is_shortened = True
                break
            plain.append(self.of(item, depth + 1))
        return plain

    def _bounded(self, text: str) -> str:
        left = max(self._left, 0)
        self._left -= len(text)
        if len(text) <= left:
            return text
        self.is_shortened = True
        return text[:left] + "…"
