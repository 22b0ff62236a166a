"""Which calls stand in which group: `by`, `missing`, `ragged`, `size` and `repeat`."""

from __future__ import annotations

import hashlib

import pytest
from grouping_tables import Rows, calls_by_group, reasons, rewards_by_group

from tracetune.types import Grouping

KEEP = Grouping(drop_constant=False)


def keep(**fields):
    """A grouping that keeps constant groups."""
    return Grouping(drop_constant=False, **fields)


def test_calls_share_a_group_only_within_run_split_and_step():
    """The same example in another run, split or step is another group; a NULL split is one of its own."""
    rows = Rows()
    scopes = [
        {"run": "a", "split": "train", "step": 1},
        {"run": "b", "split": "train", "step": 1},
        {"run": "a", "split": "val", "step": 1},
        {"run": "a", "split": None, "step": 1},
        {"run": "a", "split": "train", "step": 2},
        {"run": "a", "split": None, "step": None},
    ]
    for place, scope in enumerate(scopes):
        rows.rollout(f"x{place}", 0.0, {"answer": [f"x{place}"]}, **scope)
        rows.rollout(f"y{place}", 1.0, {"answer": [f"y{place}"]}, **scope)
    found = {group.id: [member.call_id for member in group.members] for group in rows.batch(KEEP).groups}
    assert found == {
        "a/train/1/q1/answer//0/0": ["x0", "y0"],
        "a/train/2/q1/answer//0/0": ["x4", "y4"],
        "a/val/1/q1/answer//0/0": ["x2", "y2"],
        "a//1/q1/answer//0/0": ["x3", "y3"],
        "a///q1/answer//0/0": ["x5", "y5"],
        "b/train/1/q1/answer//0/0": ["x1", "y1"],
    }


def test_production_logs_are_grouped_across_examples():
    """With one rollout an example, ("module", "invocation") makes groups across the run."""
    rows = Rows()
    for place, reward in enumerate([0.0, 1.0, 1.0]):
        rows.rollout(
            f"trace{place}", reward, {"plan": [f"p{place}"], "act": [f"a{place}", f"b{place}"]},
            example_id=f"hash{place}", split=None, step=None,
        )  # fmt: skip
    batch = rows.batch(keep(by=("module", "invocation")))
    assert calls_by_group(batch) == {
        ("plan", 0): ["p0", "p1", "p2"],
        ("act", 0): ["a0", "a1", "a2"],
        ("act", 1): ["b0", "b1", "b2"],
    }
    assert dict(batch.groups[0].key) == {
        "run": "try-1", "split": None, "step": None, "module": "act", "invocation": 0,
    }  # fmt: skip


def test_the_order_in_by_does_not_matter():
    """`by` is a set of columns: a group's id names them in one order."""
    rows = Rows().rollout("a", 0.0, {"act": ["a1"]}).rollout("b", 1.0, {"act": ["b1"]})
    assert rows.batch(keep(by=("invocation", "module"))) == rows.batch(keep(by=("module", "invocation")))


def test_calls_without_an_invocation_in_by_stand_in_the_order_they_were_made():
    """Grouped by module alone, a rollout's calls follow each other by invocation, turn and choice."""
    rows = Rows().rollout("a", 0.0, {"act": ["z", "y", "x"]}).rollout("b", 1.0, {"act": ["w"]})
    rows.change("x", invocation=1, turn=1)
    batch = rows.batch(keep(by=("example_id", "module")))
    assert calls_by_group(batch) == {("act",): ["z", "y", "x", "w"]}


def test_choices_of_one_request_stand_in_one_group():
    """Calls that share invocation and turn are members of one group, in the order of choices."""
    rows = Rows().rollout("a", 0.0, {"act": ["a1"], "plan": ["a2"]}).rollout("b", 1.0, {"act": ["b1"]})
    rows.change("a2", module="act", choice=1)
    assert calls_by_group(rows.batch(KEEP)) == {("act", 0): ["a1", "a2", "b1"]}


def test_keys_align_parallel_branches():
    """Calls with the same key are compared, whatever their order."""
    rows = Rows()
    for rollout, reward in (("a", 0.0), ("b", 1.0)):
        rows.rollout(rollout, reward, {"act": [f"{rollout}1", f"{rollout}2"]})
    for call, key in {"a1": "left", "a2": "right", "b1": "right", "b2": "left"}.items():
        rows.change(call, key=key, invocation=0)
    groups = {group.key["key"]: [member.call_id for member in group.members] for group in rows.batch(KEEP)}
    assert groups == {"left": ["a1", "b2"], "right": ["a2", "b1"]}


def test_members_stand_in_the_order_of_rollout_index():
    """Slots follow rollout_index, not ids or rows."""
    rows = Rows()
    for index, rollout in ((2, "a"), (0, "c"), (1, "b")):
        rows.rollout(rollout, float(index), {"act": [f"{rollout}1"]}, rollout_index=index)
    assert calls_by_group(rows.batch(KEEP)) == {("act", 0): ["c1", "b1", "a1"]}


def test_keep_groups_over_the_rollouts_that_made_the_call():
    """A rollout that never called a module is simply not in its groups."""
    rows = Rows().rollout("a", 0.0, {"plan": ["pa"]}).rollout("b", 1.0, {"plan": ["pb"], "act": ["b1"]})
    batch = rows.batch(KEEP)
    assert calls_by_group(batch) == {("plan", 0): ["pa", "pb"], ("act", 0): ["b1"]}
    assert list(batch.singletons) == ["try-1/train/1/q1/act//0/0"]


def test_strict_counts_a_rollout_that_made_no_call_at_all():
    """A rollout of the example that crashed before its first call called no module: nothing of the example is left."""
    rows = Rows().rollout("a", 1.0, {"plan": ["pa"]}).rollout("b", 0.0, {"plan": ["pb"]})
    rows.rollout("c", None, {}, status="error", error_type="builtins.ValueError")
    batch = rows.batch(Grouping(missing="strict"), where="run = 'try-1' AND step = 1")
    assert (len(batch), reasons(batch)) == (0, {"pa": "missing", "pb": "missing"})
    assert reasons(batch, "rollout") == {"c": "no_calls"}


def test_strict_is_strict_within_one_example_only():
    """Another example, step or superseded rollout that lacks the module changes nothing."""
    rows = Rows().rollout("a", 0.0, {"plan": ["pa"], "act": ["a1"]}).rollout("b", 1.0, {"plan": ["pb"], "act": ["b1"]})
    rows.rollout("c", 1.0, {"plan": ["pc"]}, example_id="q2").rollout("d", 1.0, {"plan": ["pd"]}, step=2)
    rows.rollout("e", 1.0, {"plan": ["pe"]}, superseded=True).rollout("f", None, {"plan": ["pf"]})
    assert ("act", 0) in rewards_by_group(rows.batch(Grouping(missing="strict")))


def test_a_condition_bounds_what_strict_looks_at():
    """Rollouts that the condition does not select are not missed."""
    rows = (
        Rows().rollout("a", 0.0, {"act": ["a1"]}).rollout("b", 1.0, {"act": ["b1"]}).rollout("c", 1.0, {"plan": ["c1"]})
    )
    assert calls_by_group(rows.batch(Grouping(missing="strict"), where="rollout_id < 'c'")) == {
        ("act", 0): ["a1", "b1"]
    }


def test_truncation_looks_only_at_rollouts_that_called_the_module():
    """With act = [], [b1, b2], [c1, c2] nothing is cut."""
    rows = Rows().rollout("a", 0.0, {"plan": ["pa"]})
    rows.rollout("b", 2.0, {"act": ["b1", "b2"]}).rollout("c", 1.0, {"act": ["c1", "c2"]})
    assert calls_by_group(rows.batch(keep(ragged="truncate"))) == {
        ("act", 0): ["b1", "c1"], ("act", 1): ["b2", "c2"], ("plan", 0): ["pa"],
    }  # fmt: skip


def test_filling_repeats_an_invocation_with_all_its_turns():
    """A repeated invocation brings its retries along, each into the group of its turn."""
    rows = Rows().rollout("a", 0.0, {"act": ["a1", "a1-retry"]}).rollout("b", 1.0, {"act": ["b1", "b2"]})
    rows.change("a1-retry", invocation=0, turn=1)
    batch = rows.batch(keep(ragged="fill", fill="last"))
    found = {(group.key["invocation"], group.key["turn"]): [m.call_id for m in group.members] for group in batch}
    assert found == {(0, 0): ["a1", "b1"], (0, 1): ["a1-retry"], (1, 0): ["a1", "b2"], (1, 1): ["a1-retry"]}


def test_random_filling_takes_the_rollouts_own_calls():
    """Each filled slot holds a call of its own rollout, and another seed picks others."""
    rows = Rows().rollout("long", 1.0, {"act": [f"l{i}" for i in range(20)]})
    rows.rollout("short", 0.0, {"act": ["s0", "s1", "s2"]})
    picks = {seed: calls_by_group(rows.batch(keep(ragged="fill", seed=seed))) for seed in (0, 1)}
    for groups in picks.values():
        assert [groups["act", i][0] for i in range(20)] == [f"l{i}" for i in range(20)]
        assert [groups["act", i][1] for i in range(3)] == ["s0", "s1", "s2"]
        assert {groups["act", i][1] for i in range(3, 20)} == {"s0", "s1", "s2"}
    assert picks[0] != picks[1]


def hashed(*parts: object) -> int:
    """The first 15 hexadecimal digits of the MD5 of some parts, as a number."""
    return int(hashlib.md5("\x1f".join(map(str, parts)).encode()).hexdigest()[:15], 16)


def test_random_picks_are_a_hash_that_anyone_can_compute():
    """A pick depends on seed, rollout, group and slot alone: what was picked today is picked next year."""
    rows = (
        Rows().rollout("long", 1.0, {"act": [f"l{i}" for i in range(8)]}).rollout("short", 0.0, {"act": ["s0", "s1"]})
    )
    filled = calls_by_group(rows.batch(keep(ragged="fill", seed=7)))
    assert [filled["act", i][1] for i in range(2, 8)] == [
        f"s{hashed(7, 'short', 'act', '', i) % 2}" for i in range(2, 8)
    ]
    rows = Rows()
    for place in range(8):
        rows.rollout(f"r{place}", float(place), {"act": [f"c{place}"]})
    picked = calls_by_group(rows.batch(keep(size=3, select="random", seed=7)))
    ranked = sorted(range(8), key=lambda place: hashed(7, f"r{place}", "try-1/train/1/q1/act//0/0", place))
    assert picked == {("act", 0): [f"c{place}" for place in sorted(ranked[:3])]}


@pytest.mark.parametrize(("select", "picked"), [("first", ["c0", "c1"]), ("diverse", ["c2", "c0"])])
def test_select(select, picked):
    """`first` keeps the first members; `diverse` the best and the worst."""
    rows = (
        Rows().rollout("a", 0.0, {"act": ["c0"]}).rollout("b", 0.5, {"act": ["c1"]}).rollout("c", 1.0, {"act": ["c2"]})
    )
    assert calls_by_group(rows.batch(Grouping(size=2, select=select))) == {("act", 0): picked}


def test_one_diverse_member_is_the_best():
    """Of a selection to one, the best stays."""
    rows = Rows().rollout("a", 0.0, {"act": ["c0"]}).rollout("b", 0.5, {"act": ["c1"]})
    assert calls_by_group(rows.batch(keep(size=1))) == {("act", 0): ["c1"]}


def test_small_groups_stay_small_unless_repeated():
    """Three members are repeated in order up to eight only with `repeat`."""
    rows = Rows()
    for place in range(3):
        rows.rollout(f"r{place}", float(place), {"act": [f"c{place}"]})
    assert calls_by_group(rows.batch(Grouping(size=8))) == {("act", 0): ["c0", "c1", "c2"]}
    repeated = calls_by_group(rows.batch(Grouping(size=8, repeat=True)))
    assert repeated == {("act", 0): ["c0", "c1", "c2", "c0", "c1", "c2", "c0", "c1"]}


def test_the_papers_preset_fills_and_picks_twelve():
    """Fourteen rollouts of one and two calls give two groups of twelve, filled and diverse."""
    rows = Rows()
    for place in range(14):
        rows.rollout(f"r{place:02}", float(place), {"act": [f"c{place}"] + [f"d{place}"] * (place % 2)})
    groups = calls_by_group(rows.batch(Grouping.paper()))
    order = [13, 12, 11, 9, 8, 7, 6, 5, 4, 2, 1, 0]  # 0, 1.18, 2.36, 3.55, 4.73, 5.91, … 13 ranks down
    assert groups["act", 0] == [f"c{place}" for place in order]
    assert groups["act", 1] == [f"{'d' if place % 2 else 'c'}{place}" for place in order]


def test_dspys_preset_truncates_and_repeats():
    """Two rollouts of two and one calls give one group, repeated to twelve."""
    rows = Rows().rollout("a", 0.0, {"act": ["a1", "a2"]}).rollout("b", 1.0, {"act": ["b1"]})
    assert calls_by_group(rows.batch(Grouping.dspy())) == {("act", 0): ["a1", "b1"] * 6}
