"""Tables of batches: the same batch is the same file."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet
from hypothesis import given
from row_batches import QUESTION, answer, batch_of, batches, rewritten

from tracetune.rows import group_table, write_group_table
from tracetune.types import GroupBatch, Sampling


def test_a_table_holds_all_that_a_trainer_is_given(tmp_path):
    """One row a member, with every field, and the batch's unit; Parquet gives back what went in."""
    exact = answer(
        "4",
        1.0,
        0.75,
        prompt_ids=[1, 2],
        completion_ids=(3,),
        logprobs=[-0.125],
        sampling=Sampling(temperature=0.5, stop=("\n",)),
        on_policy=False,
        trajectory=1,
        teacher="gpt",
        tool_calls=[{"id": "1"}],
    )
    batch = batch_of([answer("5", 0.0), exact], [answer("6", 0.0)], unit="trajectory")
    batch = replace(batch, singletons=[batch.groups[1].id])
    write_group_table(batch, tmp_path / "batch.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "batch.parquet")
    assert table == group_table(batch)
    assert table.schema.metadata == {b"tracetune.unit": b"trajectory"}
    first, second, third = table.to_pylist()
    assert second == {
        "group_id": "q0/answer",
        "group_key": '{"example_id": "q0", "module": "answer"}',
        "slot": 1,
        "trajectory": 1,
        "singleton": False,
        "call_id": "call-4",
        "rollout_id": "rollout-4",
        "module": "answer",
        "messages": json.dumps(QUESTION, sort_keys=True, separators=(",", ":")),
        "completion": "4",
        "tool_calls": '[{"id":"1"}]',
        "finish_reason": "stop",
        "prompt_token_ids": [1, 2],
        "completion_token_ids": [3],
        "completion_logprobs": [-0.125],
        "sampling": '{"constrained":false,"max_tokens":null,'
        '"seed":null,"stop":["\\n"],"temperature":0.5,"top_k":null,"top_p":null}',
        "on_policy": False,
        "redacted": False,
        "policy_version": "run@0",
        "teacher": "gpt",
        "reward": 1.0,
        "advantage": 0.75,
    }
    unknown = ("prompt_token_ids", "completion_token_ids", "completion_logprobs", "teacher")
    assert [first[name] for name in unknown] == [None] * 4
    assert (third["group_id"], third["slot"], third["singleton"]) == ("q1/answer", 0, True)


@given(batches())
def test_equal_batches_are_equal_files(tmp_path_factory, batch):
    """The containers that a batch is made of, and the order of names in its messages, change no byte."""
    members = [
        [
            replace(member, messages=rewritten(member.messages), prompt_ids=rewritten(member.prompt_ids))
            for member in group.members
        ]
        for group in batch
    ]
    again = GroupBatch(
        tuple(replace(group, members=tuple(made)) for group, made in zip(batch, members, strict=True)), unit=batch.unit
    )
    folder = tmp_path_factory.mktemp("tables")
    for name, one in (("first", batch), ("second", again)):
        write_group_table(one, folder / name)
    assert (folder / "first").read_bytes() == (folder / "second").read_bytes()
