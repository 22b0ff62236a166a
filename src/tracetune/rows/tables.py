"""A whole batch as a table: one row a member, with its tokens.

It is what a trainer was given, in a form that can be kept, compared and read anywhere:
equal batches give files of equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tracetune.files import make_file
from tracetune.rows.messages import json_text
from tracetune.types import Group, GroupBatch, Member

_TOKENS = pa.list_(pa.int32())
_COLUMNS = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("group_key", pa.string(), nullable=False),
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("trajectory", pa.int32(), nullable=False),
        pa.field("singleton", pa.bool_(), nullable=False),
        pa.field("call_id", pa.string(), nullable=False),
        pa.field("rollout_id", pa.string(), nullable=False),
        pa.field("module", pa.string(), nullable=False),
        pa.field("messages", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("tool_calls", pa.string(), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_token_ids", _TOKENS),
        pa.field("completion_token_ids", _TOKENS),
        pa.field("completion_logprobs", pa.list_(pa.float64())),
        pa.field("sampling", pa.string(), nullable=False),
        pa.field("on_policy", pa.bool_(), nullable=False),
        pa.field("redacted", pa.bool_(), nullable=False),
        pa.field("policy_version", pa.string()),
        pa.field("teacher", pa.string()),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("advantage", pa.float64(), nullable=False),
    ]
)


def group_table(batch: GroupBatch) -> pa.Table:
    """The members of a batch, one a row, in its order; `docs/rows.md` explains the columns.

    What was left out of the batch is not in it. Messages, tool calls, sampling and the
    group's key are JSON, since their shapes vary.

    Raises:
        InvalidInput: if a message holds what JSON cannot express.

    Example:
        >>> from tracetune.types import GroupBatch
        >>> group_table(GroupBatch([])).num_rows
        0
    """
    singletons = set(batch.singletons)
    rows = [
        _row(group, slot, member, group.id in singletons)
        for group in batch
        for slot, member in enumerate(group.members)
    ]
    return pa.Table.from_pylist(rows, schema=_COLUMNS.with_metadata({"tracetune.unit": batch.unit}))


def write_group_table(batch: GroupBatch, path: str | PathLike[str]) -> None:
    """Write a batch as a Parquet file; equal batches give equal bytes.

    Raises:
        InvalidInput: if a message holds what JSON cannot express.
        OSError: if the file cannot be written.

    Example:
        >>> write_group_table(batch, "batch.parquet")  # doctest: +SKIP
    """
    table = group_table(batch)
    make_file(Path(path))
    pa.parquet.write_table(table, path, compression="zstd")


def _row(group: Group, slot: int, member: Member, is_singleton: bool) -> dict[str, Any]:
    return {
        "group_id": group.id,
        "group_key": json_text(dict(group.key)),
        "slot": slot,
        "trajectory": member.trajectory,
        "singleton": is_singleton,
        "call_id": member.call_id,
        "rollout_id": member.rollout_id,
        "module": member.module,
        "messages": json_text(list(member.messages), canonical=True),
        "completion": member.text,
        "tool_calls": json_text(list(member.tool_calls), canonical=True),
        "finish_reason": member.finish_reason,
        "prompt_token_ids": _list(member.prompt_ids),
        "completion_token_ids": _list(member.completion_ids),
        "completion_logprobs": _list(member.logprobs),
        "sampling": json_text(member.sampling.model_dump(mode="json"), canonical=True),
        "on_policy": member.on_policy,
        "redacted": member.is_redacted,
        "policy_version": member.policy_version,
        "teacher": member.teacher,
        "reward": member.reward,
        "advantage": member.advantage,
    }


def _list(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)
