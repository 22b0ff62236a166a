"""What a trainer receives: whole members, stable order, and refusals of bad conditions."""

from __future__ import annotations

import duckdb
import pytest
from grouping_tables import Rows, calls_by_group

from tracetune.errors import InvalidReward, QueryError
from tracetune.grouping.groups.align import group_view_sql
from tracetune.grouping.groups.batches import group_batch
from tracetune.types import Group, Grouping, LeftOut, Member, Sampling

KEEP = Grouping(drop_constant=False)


def two() -> Rows:
    """Rollouts a and b with rewards 0 and 1: one `plan` and two `act` calls each."""
    rows = Rows()
    for place, rollout in enumerate("ab"):
        rows.rollout(rollout, float(place), {"plan": [f"{rollout}p"], "act": [f"{rollout}1", f"{rollout}2"]})
    return rows


def test_a_member_has_all_that_is_known_of_its_call():
    """Tokens, log-probabilities, messages and sampling come back as Python values, equal to what was recorded."""
    rows = Rows().rollout("a", 0.0, {"act": ["a1"]}).rollout("b", 1.0, {"act": ["b1"]})
    rows.change(
        "b1",
        messages='[{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}]',
        completion="four",
        finish_reason="stop",
        sampling='{"temperature": 1.0, "stop": "\\n", "n": 3}',
        prompt_token_ids=[1, 2, 3],
        completion_token_ids=[4, 5],
        completion_logprobs=[-0.5, -0.25],
        policy_version="try-1@4",
        exact=True,
        on_policy=True,
    )
    rows.change("a1", messages=None, sampling='{"temperature": 0.5, "top_k": -1}', prompt_token_ids=[], exact=True)
    advantage = 0.5 / (0.5**0.5 + 1e-4)
    key = {
        "run": "try-1", "split": "train", "step": 1, "example_id": "q1", "module": "act", "key": "",
        "invocation": 0, "turn": 0,
    }  # fmt: skip
    unknown = Member(
        call_id="a1", rollout_id="a", module="act", messages=(), prompt_ids=[], completion_ids=None, logprobs=None,
        text="done", finish_reason=None, sampling=Sampling(temperature=0.5), policy_version=None,
        reward=0.0, advantage=pytest.approx(-advantage), on_policy=False, trajectory=0,
    )  # fmt: skip
    known = Member(
        call_id="b1", rollout_id="b", module="act",
        messages=({"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}),
        prompt_ids=[1, 2, 3], completion_ids=[4, 5], logprobs=[-0.5, -0.25], text="four", finish_reason="stop",
        sampling=Sampling(temperature=1.0, stop=("\n",)), policy_version="try-1@4",
        reward=1.0, advantage=pytest.approx(advantage), on_policy=True, trajectory=1,
    )  # fmt: skip
    assert list(rows.batch(Grouping())) == [Group(key, (unknown, known))]


def test_groups_come_in_the_order_of_their_keys():
    """Numbers are ordered as numbers, NULL last, whatever the order of rows."""
    rows = Rows()
    for step in (10, 9, None):
        rows.rollout(f"a{step}", 0.0, {"act": [f"a{step}"]}, step=step)
        rows.rollout(f"b{step}", 1.0, {"act": [f"b{step}"]}, step=step)
    assert [group.key["step"] for group in rows.batch(KEEP)] == [9, 10, None]


def test_a_groups_id_is_its_id_in_the_view():
    """`Group.id` and the view's `group_id` are one text, also for NULL and for numbers."""
    rows = two()
    for row in rows.rollouts + rows.calls:
        row.update(split=None, step=None)
    with rows.connection() as connection:
        in_view = connection.execute(f"SELECT group_id FROM ({group_view_sql()['groups']}) ORDER BY 1").fetchall()
        assert [(group.id,) for group in group_batch(connection, KEEP)] == in_view


def test_the_views_are_the_batch():
    """`groups` and `group_members` say what `Grouping(drop_constant=False)` gives."""
    rows = two().rollout("c", 0.25, {"plan": ["cp"]}).rollout("late", None, {"plan": ["lp"]})
    with rows.connection() as connection:
        for name, text in group_view_sql().items():
            connection.execute(f"CREATE TEMP VIEW {name} AS {text}")
        groups = connection.execute(
            "SELECT group_id, run, split, step, example_id, module, key, invocation, turn, size, n_rollouts, "
            "reward_mean, round(reward_std, 6) FROM groups ORDER BY group_id"
        ).fetchall()
        columns = "group_id, slot, call_id, rollout_id, reward, advantage"
        members = connection.execute(f"SELECT {columns} FROM group_members ORDER BY group_id, slot").fetchall()
        batch = group_batch(connection, KEEP)
        view_columns = [name for name, *_ in connection.execute("DESCRIBE group_members").fetchall()]
    within = ("try-1", "train", 1, "q1")
    assert groups == [
        ("try-1/train/1/q1/act//0/0", *within, "act", "", 0, 0, 2, 2, 0.5, 0.707107),
        ("try-1/train/1/q1/act//1/0", *within, "act", "", 1, 0, 2, 2, 0.5, 0.707107),
        ("try-1/train/1/q1/plan//0/0", *within, "plan", "", 0, 0, 3, 3, pytest.approx(1.25 / 3), 0.520416),
    ]
    assert view_columns == columns.split(", ")
    assert members == [
        (group.id, slot, member.call_id, member.rollout_id, member.reward, member.advantage)
        for group in batch
        for slot, member in enumerate(group.members)
    ]


def test_a_condition_selects_calls():
    """Any columns of `calls` may be named; a comment at its end does no harm."""
    batch = two().batch(KEEP, "module = 'act' AND invocation = 1 -- the second")
    assert calls_by_group(batch) == {("act", 1): ["a2", "b2"]}
    assert list(batch.left_out) == []


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("modul = 'act'", r'Referenced column "modul" not found'),
        ("module = ", r"syntax error"),
        ("", r"where='' is empty; pass one condition over calls"),
        ("true); DROP TABLE calls; SELECT (1", r"is not one condition over calls: the query has 3 statements"),
        ("step::VARCHAR::DATE > '2026-01-01'", r"invalid date field format"),
    ],
)
def test_what_is_not_a_condition_is_refused(where, message):
    """The message has the condition and DuckDB's reason, and nothing was changed."""
    with two().connection() as connection:
        with pytest.raises(QueryError, match=message) as refusal:
            group_batch(connection, KEEP, where)
        assert repr(where) in str(refusal.value)
        assert len(group_batch(connection, KEEP)) == 3


def test_nothing_is_left_behind_in_the_connection(tmp_path):
    """A store that is open for reading only can be grouped, and has no table more afterwards, nor after an error."""
    path = tmp_path / "rows.duckdb"
    with two().connection() as connection:
        connection.execute(f"ATTACH '{path}' AS copy")
        connection.execute("COPY FROM DATABASE memory TO copy")
        connection.execute("DETACH copy")
    listed = "SELECT name FROM (SHOW ALL TABLES) ORDER BY name"
    with duckdb.connect(path, read_only=True) as connection:
        before = connection.execute(listed).fetchall()
        assert len(group_batch(connection, Grouping(credit=lambda rollout, call: rollout.reward))) == 3
        with pytest.raises(InvalidReward):
            group_batch(connection, Grouping(credit=lambda rollout, call: None))
        assert connection.execute(listed).fetchall() == before
        assert ("calls",) in before


def test_left_out_reads_as_a_sequence():
    """Length, index, slice, iteration and comparison are those of a list, though it is kept in columns."""
    left_out = two().batch(Grouping(modules=("plan",))).left_out
    expected = [LeftOut("call", call, "other_module") for call in ("a1", "a2", "b1", "b2")]
    assert (len(left_out), list(left_out), left_out[0], left_out[-1]) == (4, expected, expected[0], expected[-1])
    assert left_out[1:3] == expected[1:3]
    assert left_out == expected
    assert expected[2] in left_out
    with pytest.raises(IndexError):
        left_out[4]


def test_no_rows_give_an_empty_batch():
    """An empty store has no groups, and nothing left out."""
    batch = Rows().batch(Grouping.paper())
    assert (len(batch), list(batch.left_out), list(batch.singletons)) == (0, [], [])
