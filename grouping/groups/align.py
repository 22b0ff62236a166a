"""Alignment as SQL: which calls are compared with each other, and what each is worth.

The work is in the files `sql/align_*.sql`. Each is one stage: a SELECT that reads the
stage before it. Here a grouping's fields decide which stages there are and what stands
for their `$placeholders`; the stages become one WITH clause. The public views and
`group_batch` are made of the same text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from string import Template

from tracetune.grouping.scripts import script
from tracetune.types import Grouping

WITHIN = ("run", "split", "step")
KEY_COLUMNS = ("example_id", "module", "key", "invocation", "turn")
# What orders the calls of one rollout.
_ORDER_COLUMNS = ("invocation", "turn", "choice")

# The relations in which a chain of stages ends, by the name of what their rows are.
ALIGNED_CALLS = "aligned_calls"
ALIGNED_GROUPS = "aligned_groups"


def group_key(grouping: Grouping) -> tuple[str, ...]:
    """The columns that the members of one group share, in the order in which a group's id names them.

    Example:
        >>> group_key(Grouping(by=("module", "invocation")))
        ('run', 'split', 'step', 'module', 'invocation')
        >>> group_key(Grouping(unit="trajectory"))
        ('run', 'split', 'step', 'example_id')
    """
    of_calls = () if grouping.unit == "trajectory" else KEY_COLUMNS[1:]
    return (*WITHIN, *(column for column in KEY_COLUMNS[:1] + of_calls if column in grouping.by))


def calls_sql(grouping: Grouping, where: str | None = None) -> dict[str, str]:
    """The stages from recorded calls to `aligned_calls`: every call in scope, its reward, and why it is left out.

    Args:
        grouping: how to align them.
        where: a condition over the columns of `calls`.

    Returns:
        The SELECT of each stage, by its name, in the order of work.
    """
    stages = ["align_calls"]
    if grouping.credit != "uniform":
        stages.append("align_credit_module" if grouping.credit == "module" else "align_credit_function")
    if grouping.unit == "call":
        if grouping.missing == "strict":
            stages.append("align_missing")
        if grouping.ragged != "keep":
            stages.append(f"align_{grouping.ragged}")
    scope = {
        "calls_in_scope": "FROM calls" + ("" if where is None else f"\nWHERE (\n{where}\n)"),
        "rollouts_earned": _stage("align_rollouts", grouping),
        "rollouts_in_scope": _stage("align_rollouts_in_scope", grouping, where="true" if where is None else where),
    }
    return scope | _chain(stages, grouping, first="", last=ALIGNED_CALLS)


def groups_sql(grouping: Grouping) -> dict[str, str]:
    """The stages from `aligned_calls` to `aligned_groups`: one row a group, with the list of its members."""
    stages = ["align_groups"]
    if grouping.unit == "trajectory":
        stages.insert(0, "align_trajectories")
    if grouping.size is not None:
        stages.append("align_select")
    stages.append("align_advantages")
    if grouping.advantage == "batch":
        stages.append("align_batch")
    stages.append("align_named_groups")
    return _chain(stages, grouping, first=ALIGNED_CALLS, last=ALIGNED_GROUPS)


def members_sql(grouping: Grouping, group_no: str = "NULL") -> dict[str, str]:
    """The stages from `aligned_groups` to `aligned_members`: one row a call of a group, with its advantage.

    Args:
        grouping: how calls are aligned.
        group_no: what tells the rows of `aligned_groups` apart; the views do without.
    """
    members = _stage("align_members", grouping, group_no=group_no)
    if grouping.unit == "call":
        return {"aligned_members": members}
    return {"aligned_units": members, "aligned_members": sql_text("align_trajectory_members")}


def answers_sql(grouping: Grouping, where: str | None = None) -> dict[str, str]:
    """What a batch is read from once `aligned_groups` is a table: calls, members, keys of groups, calls in none."""
    members = members_sql(grouping, group_no="rowid")
    keys = {"group_keys": _stage("group_keys", grouping)}
    return calls_sql(grouping, where) | members | keys | {"left_out_calls": sql_text("left_out_calls")}


def with_stages(stages: Mapping[str, str], select: str) -> str:
    """One statement: a WITH clause of the stages, then the SELECT that reads them."""
    relations = ",\n".join(f"{name} AS (\n{text}\n)" for name, text in stages.items())
    return f"WITH {relations}\n{select}"


def group_view_sql() -> dict[str, str]:
    """The SELECTs of the public views `groups` and `group_members`, over the views `calls` and `rollouts`.

    They group as `Grouping(drop_constant=False)` does, by the text that `group_batch` runs.
    """
    grouping = Grouping(drop_constant=False)
    stages = calls_sql(grouping) | groups_sql(grouping)
    del stages["rollouts_in_scope"]  # only strict groupings and reports of what was left out read it
    return {
        "groups": with_stages(stages, sql_text("group_view")),
        "group_members": with_stages(stages | members_sql(grouping), sql_text("group_members_view")),
    }


@cache
def sql_text(name: str) -> str:
    """The text of `<name>.sql`."""
    return script("groups", name).strip()


def _chain(names: Sequence[str], grouping: Grouping, *, first: str, last: str) -> dict[str, str]:
    stages: dict[str, str] = {}
    previous = first
    for name in names:
        relation = last if name == names[-1] else name.replace("align_", "after_")
        stages[relation] = _stage(name, grouping, previous=previous)
        previous = relation
    return stages


def _stage(name: str, grouping: Grouping, **names: str) -> str:
    return Template(sql_text(name)).substitute(_placeholders(grouping), **names)


def _placeholders(grouping: Grouping) -> dict[str, str]:
    """What stands for each `$placeholder` of the stages: lists of columns, and the grouping's values as literals.

    Literals rather than prepared parameters, because a view cannot have parameters.
    """
    key = group_key(grouping)
    values = {name: getattr(grouping, name) for name in _VALUES}
    return {name: _literal(value) for name, value in values.items()} | {
        "group_key": ", ".join(key),
        "order_in_group": ", ".join(f"'{column}': {column}" for column in _ORDER_COLUMNS if column not in key),
        "group_id": "concat_ws('/', " + ", ".join(f"coalesce({column}::VARCHAR, '')" for column in key) + ")",
        "cohort": ", ".join(column for column in key if column in (*WITHIN, "example_id")),
        "module_weight": _module_weight(grouping),
    }


_VALUES = (
    "advantage",
    "drop_constant",
    "eps",
    "failure_reward",
    "fill",
    "format_errors",
    "format_reward",
    "modules",
    "repeat",
    "seed",
    "select",
    "size",
)


def _module_weight(grouping: Grouping) -> str:
    weight = grouping.module_weight
    if not isinstance(weight, Mapping):
        return _literal(float(weight))
    if not weight:
        return _literal(0.0)
    cases = " ".join(f"WHEN {_literal(module)} THEN {_literal(float(share))}" for module, share in weight.items())
    return f"CASE module {cases} ELSE 0.0 END"


def _literal(value: object) -> str:
    """A value of a grouping's field as DuckDB writes it."""
    if value is None:
        return "NULL::VARCHAR[]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value!r}::DOUBLE"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    assert isinstance(value, tuple)
    return "[" + ", ".join(map(_literal, value)) + "]::VARCHAR[]"
