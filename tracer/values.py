"""What the values of a program are, one step at a time: mappings, items, or a text that stands for them.

Libraries are known by what their types declare, so that none of them is imported, and
nothing is asked of an instance that only pretends: attributes are looked up on the type.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from collections.abc import Mapping, Sequence, Set, ValuesView
from typing import Any, NamedTuple

import orjson

from tracetune.tracer.interrupts import is_interrupt

_NATIVE = (dt.datetime, dt.date, dt.time, uuid.UUID)


class Shown(NamedTuple):
    """A text that stands for a value."""

    text: str


class Named(NamedTuple):
    """A value that is names with values."""

    content: Mapping[Any, Any]


class Items(NamedTuple):
    """A value that is items in a row."""

    content: Any


def simplified(value: Any) -> Any:
    """One step from a value that JSON does not know: a plainer value, `Named`, `Items` or `Shown`."""
    kind = type(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, enum.Enum):
        return value.value
    if issubclass(kind, int):
        return int.__int__(value)
    if issubclass(kind, _NATIVE):
        return orjson.loads(orjson.dumps(value))
    if issubclass(kind, bytes | bytearray | memoryview):
        return Shown(f"<{memoryview(value).nbytes} bytes>")
    if (array := _array(value, kind)) is not None:
        return array
    if issubclass(kind, float):
        return float.__float__(value)
    if (fields := _fields(value, kind)) is not None:
        return Named(fields)
    if issubclass(kind, Mapping):
        return Named(value)
    if issubclass(kind, Set | ValuesView) or (issubclass(kind, Sequence) and not issubclass(kind, range)):
        return Items(value)
    return Shown(repr(value))


def key_text(key: Any) -> str:
    """A mapping's key as text."""
    if isinstance(key, str):
        return str.__str__(key)
    try:
        return key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else repr(key)
    except BaseException as error:  # a hostile key: the items beside it are kept
        if is_interrupt(error):
            raise
        return f"<{type_name(key)}: {type_name(error)} while it was captured>"


def type_name(value: Any) -> str:
    """The name of a value's type, whatever its metaclass does."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def speakable(text: str) -> str:
    """A text as UTF-8 can express it: without halves of surrogate pairs."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _array(value: Any, kind: type) -> Any:
    """A number for a scalar of numpy's; type, shape and element type for arrays, tensors and frames."""
    if not (_declares(kind, "shape") and (_declares(kind, "dtype") or _declares(kind, "dtypes"))):
        return None
    shape = value.shape
    if not isinstance(shape, tuple):
        return None
    if shape == () and kind.__module__ == "numpy" and _declares(kind, "item"):
        item = value.item()
        return item if type(item) is not kind else Shown(repr(value))
    element = f" {value.dtype}" if _declares(kind, "dtype") else ""
    return Shown(f"<{type_name(value)} {tuple(shape)}{element}>")


def _fields(value: Any, kind: type) -> dict[str, Any] | None:
    """The named parts of a value whose class declares them; None where it declares none."""
    if _declares(kind, "model_dump") and _declares(kind, "model_fields"):  # pydantic's
        dumped = value.model_dump(warnings=False)
        return dumped if isinstance(dumped, dict) else None
    if dataclasses.is_dataclass(kind):
        names: Any = [field.name for field in dataclasses.fields(value)]
    elif _declares(kind, "__attrs_attrs__"):
        names = [attribute.name for attribute in kind.__attrs_attrs__]  # type: ignore[attr-defined]  # just seen
    elif issubclass(kind, tuple) and _declares(kind, "_fields"):  # a named tuple
        names = kind._fields  # type: ignore[attr-defined]  # just seen
    else:
        return None
    return {name: _attribute(value, name) for name in names}


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except BaseException as error:  # the other fields are kept
        if is_interrupt(error):
            raise
        return f"<{type_name(error)} while it was captured>"


def _declares(kind: type, name: str) -> bool:
    return any(name in parent.__dict__ for parent in type.mro(kind))
