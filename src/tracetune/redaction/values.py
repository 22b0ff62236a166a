"""Values that are JSON, without the secrets in them: what stands under a name, and what texts say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracetune.redaction.names import is_secret
from tracetune.redaction.shapes import REDACTED
from tracetune.redaction.texts import is_json, redacted_json, redacted_text


def may_be_secret(value: object) -> bool:
    """Whether a value under a secret name can be one: true, false and null say nothing."""
    return value is not None and type(value) is not bool


def secret_pair(item: object) -> bool:
    """Whether an item of a list is the name of a secret and its value, as lists of headers have them.

    Example:
        >>> secret_pair(("Authorization", "Basic YW5u")), secret_pair(["Accept", "text/html"])
        (True, False)
    """
    return (
        isinstance(item, list | tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], str)
        and is_secret(item[0])
    )


def redacted_value(value: Any, *, names: bool = True) -> Any:
    """A JSON value without its secrets; the very same object where it has none.

    Args:
        value: any; what JSON does not know is left as it is.
        names: whether what stands under a secret name is replaced, besides what texts say.

    Example:
        >>> redacted_value({"headers": [["Authorization", "Basic YW5u"]], "n": 2})
        {'headers': [['Authorization', '[redacted]']], 'n': 2}
    """
    if isinstance(value, str):
        return redacted_json(value) if names and is_json(value) else redacted_text(value)
    if isinstance(value, Mapping):
        return _redacted_mapping(value, names)
    if isinstance(value, list | tuple):
        return _redacted_items(value, names)
    return value


def _redacted_mapping(mapping: Mapping[Any, Any], names: bool) -> Mapping[Any, Any]:
    changed = {}
    named = mapping.get("name", mapping.get("key")) if names else None
    for key, item in mapping.items():
        is_hidden = names and isinstance(key, str) and is_secret(key) and may_be_secret(item)
        # `{"name": "Authorization", "value": "…"}`
        is_hidden = is_hidden or (
            key == "value" and isinstance(named, str) and isinstance(item, str) and is_secret(named)
        )
        kept = REDACTED if is_hidden else redacted_value(item, names=names)
        if kept is not item and kept != item:
            changed[key] = kept
    return {**mapping, **changed} if changed else mapping


def _redacted_items(items: Sequence[Any], names: bool) -> Sequence[Any]:
    if not items or type(items[0]) in (int, float):
        return items  # tokens and their log-probabilities, by the thousand
    kept = [[item[0], REDACTED] if names and secret_pair(item) else redacted_value(item, names=names) for item in items]
    return items if all(new is old or new == old for new, old in zip(kept, items, strict=True)) else kept
