"""Texts without the secrets in them: free texts, JSON documents, and what an object shows of itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tracetune.redaction.assignments import AT_COLON, AT_EQUALS, has_assignment, without_assignments
from tracetune.redaction.names import SECRET_NAMES
from tracetune.redaction.shapes import PATTERNS, REDACTED, without_shapes


class Redacted(str):
    """A text that redaction has gone over, so that it is not searched again on its way to the file."""

    __slots__ = ()


# A text of fewer characters has room for no secret and its name.
SHORTEST = 8

# Their lengths are bounded, so that no text makes a search take longer than it is long.
_ENDINGS = "|".join(
    name.words.replace(" ", "[_. -]?") + ("s?" if name.has_plural else "")
    if not name.is_whole_word
    else rf"(?<![A-Za-z]){name.words}"
    for name in SECRET_NAMES
)
_NAME = rf"[\w. -]{{0,64}}(?:{_ENDINGS})"
# What all those names have of these.
_STEMS = ("key", "passw", "passphrase", "pwd", "token", "secret", "string", "credential", "auth", "cookie")

# `"api_key": "…"`, also where the quotes are escaped because the document is a text in another one.
_IN_JSON = re.compile(rf'(?is)((\\{{0,7}}"){_NAME}\2\s{{0,8}}:\s{{0,8}})(?:\2.*?(?:(?<!\\)\2|\Z)|[^\s"\\,}}\]{{\[]+)')
# `["Authorization", "…"]`, and `{"name": "Authorization", "value": "…"}`.
_PAIR_IN_JSON = re.compile(rf'(?is)(\[\s{{0,8}}(\\{{0,7}}"){_NAME}\2\s{{0,8}},\s{{0,8}})\2.*?(?:(?<!\\)\2|\Z)')
_ENTRY_IN_JSON = re.compile(
    rf'(?is)((\\{{0,7}}")(?:name|key)\2\s{{0,8}}:\s{{0,8}}\2{_NAME}\2\s{{0,8}},\s{{0,8}}\2value\2\s{{0,8}}:\s{{0,8}})'
    r"\2.*?(?:(?<!\\)\2|\Z)"
)
# `password='…'` in what a class shows of its fields, and `'password': '…'` in what it shows of a mapping.
_IN_REPR = re.compile(
    rf"(?i)((?<![\w.])[\w.]{{0,64}}(?:{_ENDINGS})=|(?:(['\"]){_NAME}\2\s{{0,8}}:\s{{0,8}})|"
    rf"(?:[\[(]\s{{0,8}}b?(['\"]){_NAME}\3\s{{0,8}},\s{{0,8}}))"
    r"(?:b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|(?!True\b|False\b|None\b)[^\s,)}\]\[({]+(?![\[({]))"
)


def _is_clean() -> Callable[[str], bool]:
    """`is_clean` as one expression: loops and calls take three times as long, and this is asked of every text."""
    known: dict[str, Any] = {"has_assignment": has_assignment, "colon": AT_COLON.search, "equals": AT_EQUALS.search}
    known |= {f"shape_{number}": pattern.search for number, (_, pattern) in enumerate(PATTERNS)}
    looks = [f"({mark!r} in text and shape_{number}(text))" for number, (mark, _) in enumerate(PATTERNS)]
    looks += [
        f"({sign!r} in text and {at}(text) and has_assignment(text))" for sign, at in ((":", "colon"), ("=", "equals"))
    ]
    expression = f"lambda text: len(text) < {SHORTEST} or not ({' or '.join(looks)})"
    function: Callable[[str], bool] = eval(expression, known)  # noqa: S307  made of the marks of our own table
    return function


# Whether a text has none of the secrets that `redacted_text` replaces.
is_clean = _is_clean()


def redacted_text(text: str) -> str:
    """A text without its secrets: known shapes, and values that stand under a name.

    Example:
        >>> redacted_text("curl -H 'Authorization: Bearer c2VjcmV0LTEyMw' https://ann:hunter2@example.org")
        "curl -H 'Authorization: Bearer [redacted]' https://ann:[redacted]@example.org"
    """
    return text if is_clean(text) else without_shapes(without_assignments(text))


def is_json(text: str) -> bool:
    """Whether a text begins as a JSON object or list does, blanks apart."""
    return text.startswith(("{", "[")) or text[:64].lstrip().startswith(("{", "["))


def may_name_secret(text: str) -> bool:
    """Whether a text has anything of the names in it, in whatever sense."""
    lowered = text.lower()
    return any(stem in lowered for stem in _STEMS)


def redacted_json(text: str) -> str:
    """A text that is JSON, as an object's arguments often are, without its secrets: whatever stands under their names.

    Example:
        >>> redacted_json('{"user": "ann", "password": "swordfish"}')
        '{"user": "ann", "password": "[redacted]"}'
    """
    if may_name_secret(text):
        text = _IN_JSON.sub(rf"\1\2{REDACTED}\2", text)
        text = _PAIR_IN_JSON.sub(rf"\1\2{REDACTED}\2", text)
        text = _ENTRY_IN_JSON.sub(rf"\1\2{REDACTED}\2", text)
    return redacted_text(text)


def redacted_repr(text: str) -> str:
    """What an object or an exception shows of itself, without its secrets.

    Example:
        >>> redacted_repr("Login(user='ann', password='swordfish')")
        "Login(user='ann', password=[redacted])"
    """
    return redacted_text(_IN_REPR.sub(rf"\1{REDACTED}", text) if may_name_secret(text) else text)
