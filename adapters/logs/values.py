"""Times, ids and texts of other tools' logs as ours: what each may look like, read once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

_HEX_TRACE, _HEX_SPAN = 32, 16
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(value: Any) -> int:
    """A time, in nanoseconds since the epoch: ISO 8601, or a number of seconds, milli-, micro- or nanoseconds.

    A time without a zone is UTC.

    Raises:
        ValueError: if it is no time.

    Example:
        >>> nanoseconds("1970-01-01T00:00:01Z"), nanoseconds(1_700_000_000_000)
        (1000000000, 1700000000000000000)
    """
    if isinstance(value, datetime):
        return _since_epoch(value)
    if isinstance(value, str):
        text = value.strip()
        try:
            return _since_epoch(datetime.fromisoformat(text))
        except ValueError:
            try:
                value = float(text) if "." in text else int(text)
            except ValueError:
                raise ValueError(f"{text!r:.60} is no time") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r:.60} is no time")
    # By its size: seconds of this millennium have ten digits, and each finer unit three more.
    for limit, factor in ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3)):
        if value < limit:
            return int(value * factor)
    return int(value)


def trace_number(text: str) -> int:
    """The number of a trace: its own where it is 32 hexadecimal digits or a UUID, else a hash of its name.

    Example:
        >>> f"{trace_number('00000000-0000-0000-0000-00000000002a'):x}"
        '2a'
    """
    return _hexadecimal(text.replace("-", ""), _HEX_TRACE) or _hashed(text, 16)


def span_number(text: str) -> int:
    """The number of a span: its own where it is 16 hexadecimal digits, else a hash of its name."""
    return _hexadecimal(text, _HEX_SPAN) or _hashed(text, 8)


def trace_hex(text: str) -> str:
    """A trace's number as the store has it, which is the rollout's id too."""
    return f"{trace_number(text):032x}"


def span_hex(text: str) -> str:
    """A span's number as the store has it, which is the call's id too."""
    return f"{span_number(text):016x}"


def dumped(value: Any) -> str:
    """A value as JSON text, as the tracer records inputs and outputs."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def loaded(value: Any) -> Any:
    """A value that may have been written as JSON text; other text is itself."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def fields_of(value: Any) -> Mapping[str, Any]:
    """The fields of an object, which may have been written as JSON text; none where it is something else."""
    value = loaded(value)
    return value if isinstance(value, Mapping) else {}


def example_of(messages: Any) -> str:
    """The id of an example that is known by its prompt alone: a hash, as `tt.Example` makes one of inputs."""
    canonical = json.dumps(messages, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _since_epoch(moment: datetime) -> int:
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def _hexadecimal(text: str, length: int) -> int:
    if len(text) != length:
        return 0
    try:
        return int(text, 16)
    except ValueError:
        return 0


def _hashed(text: str, size: int) -> int:
    # Zero is no id.
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:size]) or 1
