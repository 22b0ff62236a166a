"""What is kept out of every trace: values whose names say that they are secret.

Names count wherever they stand: as keys of mappings, fields, arguments, in the text that
an object shows of itself, and in texts that are JSON documents.
"""

from __future__ import annotations

import re
from functools import lru_cache

REDACTED = "[redacted]"

# Of a longer name only the end is looked at: a key may be a whole document.
LONGEST_NAME = 64
_NAMES = ("api_key", "apikey", "authorization", "password", "token", "secret")
# Their lengths are bounded, so that no text makes a search take longer than it is long.
_NAME = r"[\w. -]{0,64}(?:api[_ -]?key|authorization|password|token|secret)"

# `"api_key": "…"`, also where the quotes are escaped because the document is a text in another one.
_IN_JSON = re.compile(rf'(?is)((\\{{0,7}}"){_NAME}\2\s{{0,8}}:\s{{0,8}})(?:\2.*?(?:(?<!\\)\2|\Z)|[^\s"\\,}}\]{{\[]+)')
# `password='…'` in what a class shows of its fields, and `'password': '…'` in what it shows of a mapping.
_IN_REPR = re.compile(
    rf"(?i)(\b[\w.]{{0,64}}(?:api_?key|authorization|password|token|secret)=|(?:(['\"]){_NAME}\2\s{{0,8}}:\s{{0,8}}))"
    r"(?:b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|[^\s,)}\]]+)"
)


def is_secret(name: str) -> bool:
    """Whether a key of this name holds a secret: `api_key`, `X-Api-Key`, `access_token`, but not `max_tokens`.

    Example:
        >>> is_secret("OPENAI-API-KEY"), is_secret("max_tokens")
        (True, False)
    """
    return ends_secret(name[-LONGEST_NAME:])


@lru_cache(maxsize=4096)
def ends_secret(name: str) -> bool:
    """`is_secret` of a name that is no longer than `LONGEST_NAME`."""
    return name.lower().replace("-", "_").replace(" ", "_").endswith(_NAMES)


def is_json(text: str) -> bool:
    """Whether a text begins as a JSON object or list does."""
    return text.startswith(("{", "["))


def may_name_secret(text: str) -> bool:
    """Whether a text has any of the names in it, in whatever sense."""
    lowered = text.lower()
    return any(name in lowered for name in (*_NAMES, "api-key", "api key"))


def redacted_json(text: str) -> str:
    """A text that is JSON, as an object's arguments often are, without its secrets.

    Example:
        >>> redacted_json('{"user": "ann", "password": "hunter2"}')
        '{"user": "ann", "password": "[redacted]"}'
    """
    return _IN_JSON.sub(rf"\1\2{REDACTED}\2", text)


def redacted_repr(text: str) -> str:
    """What an object shows of itself, without its secrets.

    Example:
        >>> redacted_repr("Login(user='ann', password='hunter2')")
        "Login(user='ann', password=[redacted])"
    """
    return _IN_REPR.sub(rf"\1{REDACTED}", text)
