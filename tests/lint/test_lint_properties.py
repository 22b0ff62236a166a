"""Lint and grouping never disagree, whatever was recorded and however it is grouped."""

from __future__ import annotations

from collections import Counter

import pytest
from grouping_strategies import groupings, rows, some
from grouping_tables import Rows
from hypothesis import given
from lint.lint_tables import lint_of

from tracetune.types import Grouping


@pytest.mark.parametrize("where", [None, "module = 'act' OR invocation = 0"])
@some
@given(made=rows(), grouping=groupings)
def test_lint_counts_what_grouping_does(where: str | None, made: Rows, grouping: Grouping):
    """The trainable calls are those that stand in groups; each other call is counted once, under its reason."""
    batch = made.batch(grouping, where)
    report = lint_of(made, grouping, where)
    assert sum(module.trainable for module in report.modules) == len(
        {member.call_id for group in batch for member in group.members}
    )
    left_out = Counter()
    for module in report.modules:
        assert sum(module.left_out.values()) == module.calls - module.trainable
        left_out.update(module.left_out)
    assert left_out == Counter(entry.reason for entry in batch.left_out if entry.kind == "call")


@some
@given(made=rows(), grouping=groupings)
def test_a_note_is_of_no_more_calls_than_can_be_trained_on(made: Rows, grouping: Grouping):
    """Notes are said of trainable calls, but for the one that counts rollouts."""
    for module in lint_of(made, grouping).modules:
        assert all(count <= module.trainable for note, count in module.notes.items() if note != "not_everywhere")
