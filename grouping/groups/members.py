"""Members: rows of kept calls turned into the values that a trainer learns from.

Token lists are cut out of Arrow's flat buffers, and texts that many members share (the
prompt of a group, the sampling of a run) are parsed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Any

import orjson
import pyarrow as pa
from pydantic import ValidationError

from tracetune.types import Member, Sampling
from tracetune.types.teachers import teacher_of


def members_of(rows: pa.Table) -> list[Member]:
    """The members that the rows of `group_details.sql` describe, in their order."""
    messages = _Parsed(_messages_of)
    samplings = _Parsed(_sampling_of)
    members: list[Member] = []
    for batch in rows.to_batches():
        column = {name: batch.column(name) for name in batch.schema.names}
        members += map(
            Member,
            column["call_id"].to_pylist(),
            column["rollout_id"].to_pylist(),
            column["module"].to_pylist(),
            map(messages.__getitem__, column["messages"].to_pylist()),
            _lists(column["prompt_token_ids"]),
            _lists(column["completion_token_ids"]),
            _lists(column["completion_logprobs"]),
            (text or "" for text in column["completion"].to_pylist()),
            column["finish_reason"].to_pylist(),
            map(samplings.__getitem__, column["sampling"].to_pylist()),
            column["policy_version"].to_pylist(),
            column["reward"].to_pylist(),
            column["advantage"].to_pylist(),
            map(bool, column["on_policy"].to_pylist()),
            column["trajectory"].to_pylist(),
            map(teacher_of, column["policy_version"].to_pylist()),
            repeat(()),
            map(bool, column["redacted"].to_pylist()),
        )
    return members


class _Parsed(dict[Any, Any]):
    """Texts and what they say: each is parsed when it is first asked for."""

    def __init__(self, parse: Callable[[str | None], Any]) -> None:
        self._parse = parse

    def __missing__(self, text: str | None) -> Any:
        value = self[text] = self._parse(text)
        return value


def _messages_of(text: str | None) -> tuple[Mapping[str, Any], ...]:
    return tuple(orjson.loads(text)) if text else ()


def _sampling_of(text: str | None) -> Sampling:
    """What is known of the sampling; a provider's own settings, and values of its own dialect, are not."""
    recorded = orjson.loads(text) if text else {}
    known = {name: value for name, value in recorded.items() if name in Sampling.model_fields and value is not None}
    if isinstance(known.get("stop"), str):
        known["stop"] = (known["stop"],)
    try:
        return Sampling(**known)
    except ValidationError as error:
        for problem in error.errors():
            known.pop(str(problem["loc"][0]), None)
        return Sampling(**known)


def _lists(column: pa.ListArray) -> Iterator[list[Any] | None]:
    """The rows of a column of lists; much quicker than `to_pylist`, which visits every number."""
    flat = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_pylist()
    for place, known in enumerate(column.is_valid().to_pylist()):
        yield flat[offsets[place] : offsets[place + 1]].tolist() if known else None
