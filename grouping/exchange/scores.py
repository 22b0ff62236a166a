"""Scores as a caller brings them: checked row by row before any of them is recorded."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tracetune.errors import InvalidInput, InvalidReward
from tracetune.types import Score

_DEFAULTS: dict[str, Any] = {
    "rollout_id": None,
    "call_id": None,
    "module": None,
    "name": "reward",
    "source": "user",
    "feedback": "",
}


def score_rows(table: Any) -> list[dict[str, Any]]:
    """The bodies of score records, from mappings, an Arrow table, or a pandas or polars frame.

    Raises:
        InvalidInput: if a column is missing or not known.
        InvalidReward: if a value is not a finite number.

    Example:
        >>> score_rows([{"rollout_id": "r1", "value": 1}])[0]["value"]
        1.0
    """
    checked = []
    for number, row in enumerate(_rows(table)):
        if unknown := sorted(row.keys() - _DEFAULTS.keys() - {"value"}):
            raise InvalidInput(f"score {number} has {unknown[0]!r}, which is not one of value, {', '.join(_DEFAULTS)}")
        score = {name: default if row.get(name) is None else str(row[name]) for name, default in _DEFAULTS.items()}
        if score["rollout_id"] is None and score["call_id"] is None:
            raise InvalidInput(f"score {number} names neither a rollout_id nor a call_id: {row!r:.80}")
        try:
            score["value"] = Score.of(row.get("value")).value
        except InvalidReward as error:
            raise InvalidReward(f"score {number} of {score['rollout_id'] or score['call_id']}: {error}") from error
        checked.append(score)
    return checked


def _rows(table: Any) -> list[dict[str, Any]]:
    if hasattr(table, "__arrow_c_stream__"):  # Arrow tables, pandas and polars frames
        rows: list[dict[str, Any]] = pa.table(table).to_pylist()
        return rows
    try:
        return [dict(row) for row in table]
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"scores are rows or a table, not {type(table).__name__}") from error
