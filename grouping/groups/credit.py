"""Credit functions: what each call earned, as a Python function of its rollout and itself says.

The function is asked once for each call that can stand in a group; its answers go back
to the alignment as a table. Calls of failed rollouts earn what failures earn and are not
asked about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from tracetune.errors import InvalidReward
from tracetune.grouping.groups.align import calls_sql, sql_text, with_stages
from tracetune.grouping.queries.results import read_table
from tracetune.types import Call, Grouping, Rollout


def call_credits(connection: duckdb.DuckDBPyConnection, grouping: Grouping, where: str | None) -> pa.Table:
    """What the grouping's credit function gives each call: columns call_id and credit.

    Raises:
        InvalidReward: if it gives what is not a finite number; the message names the call.
    """
    # Which calls are asked about is settled before anything is known of their credit.
    stages = calls_sql(grouping.model_copy(update={"credit": "uniform", "missing": "keep", "ragged": "keep"}), where)
    rows = read_table(connection, with_stages(stages, sql_text("group_credit_calls")))
    call_ids: list[str] = []
    earned: list[float] = []
    for _, group in groupby(rows.to_pylist(), key=itemgetter("rollout_id")):
        made = list(group)
        calls = [_call(row) for row in made]
        rollout = _rollout(made[0], calls)
        for row, call in zip(made, calls, strict=True):
            if row["wanted"]:
                call_ids.append(call.call_id)
                earned.append(_finite(grouping.credit(rollout, call), call))
    return pa.table({"call_id": pa.array(call_ids, pa.string()), "credit": pa.array(earned, pa.float64())})


def _finite(value: object, call: Call) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # what the function gave is checked here
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise InvalidReward(
            f"the credit function gave {value!r:.80} for call {call.call_id} (module {call.module!r}, "
            f"rollout {call.rollout_id}); it must give a finite number"
        )
    return number


def _call(row: Mapping[str, Any]) -> Call:
    return Call(
        call_id=row["call_id"],
        rollout_id=row["rollout_id"],
        module=row["module"],
        key=row["key"],
        invocation=row["invocation"],
        turn=row["turn"],
        choice=row["choice"],
        messages=orjson.loads(row["messages"] or "[]"),
        completion=row["completion"] or "",
        finish_reason=row["finish_reason"],
        response_id=row["response_id"],
        status=row["status"],
    )


def _rollout(row: Mapping[str, Any], calls: list[Call]) -> Rollout:
    return Rollout(
        id=row["rollout_id"],
        example_id=row["example_id"],
        run=row["run"] or "",
        split=row["split"],
        step=row["step"],
        index=row["rollout_index"] or 0,
        program=row["program"] or "",
        status=row["rollout_status"] or "",
        error_type=row["error_type"],
        output=_parsed(row["output"]),
        reward=row["rollout_reward"],
        duration_ms=row["rollout_duration_ms"] or 0.0,
        policy_version=row["rollout_policy_version"],
        calls=calls,
    )


def _parsed(output: str | None) -> Any:
    return None if output is None else orjson.loads(output)
