"""One program, logged by several tools: the same calls, whichever of them it was imported from."""

from __future__ import annotations

import gzip
import io

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.conftest import Finished
from logs import logged_program
from logs.logged_program import CALLS, REWARD

from tracetune import Store

QUERY = """
    SELECT calls.module, calls.invocation, calls.turn, calls.messages::VARCHAR AS messages, calls.completion,
           calls.status, calls.model, calls.exact, call_rows.input_tokens, call_rows.output_tokens,
           json_extract(calls.sampling, '$.temperature')::DOUBLE AS temperature, calls.reward
    FROM calls JOIN call_rows USING (call_id) ORDER BY call_rows.input_tokens
"""


def lines(values):
    """JSON lines."""
    return b"\n".join(map(orjson.dumps, values))


def parquet(rows):
    """A Parquet file of rows."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def frame(rows):
    """A dataframe, as `to_parquet` writes it."""
    buffer = io.BytesIO()
    pd.DataFrame(rows).to_parquet(buffer)
    return buffer.getvalue()


FORMS = {
    "langfuse, JSON lines": ("langfuse", lambda: lines(logged_program.langfuse())),
    "langfuse, an array": ("langfuse", lambda: orjson.dumps(logged_program.langfuse())),
    "langfuse, a page of the API": ("langfuse", lambda: orjson.dumps({"data": logged_program.langfuse(), "meta": {}})),
    "langfuse, from blob storage": ("langfuse", lambda: gzip.compress(lines(logged_program.langfuse_blob()))),
    "langfuse, a trace on many lines": (
        "langfuse",
        lambda: orjson.dumps(
            {
                "trace": {"id": "trace-1", "name": "find"},
                "observations": logged_program.langfuse()[:-1],
                "scores": logged_program.langfuse()[-1:],
            },
            option=orjson.OPT_INDENT_2,
        ),
    ),
    "langsmith, JSON lines": ("langsmith", lambda: lines(logged_program.langsmith())),
    "langsmith, an array": ("langsmith", lambda: orjson.dumps(logged_program.langsmith())),
    "openinference, JSON lines": ("openinference", lambda: lines(logged_program.openinference())),
    "openinference, a dataframe's Parquet": ("openinference", lambda: frame(logged_program.openinference_rows())),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_tool_tells_of_the_same_calls(tracetune, tmp_path, form):
    """Modules, invocations, prompts, answers and tokens are the program's, twice imported or once."""
    name, content = FORMS[form]
    file = tmp_path / "log"
    file.write_bytes(content())
    arguments = ("import", "store.duckdb", "log", "--format", name, "--reward", "correctness", "--run", "prod")
    assert tracetune(*arguments).status == 0
    again = tracetune(*arguments)
    assert (again.status, " 0 spans and 0 log records are new" in again.stderr) == (0, True)

    store = Store(tmp_path / "store.duckdb")
    reward = None if name == "openinference" else REWARD
    assert store.sql(QUERY).rows() == [
        {
            "module": module,
            "invocation": number - 1 if module == "search" else 0,
            "turn": 0,
            "messages": orjson.dumps([{"role": "user", "content": prompt}]).decode(),
            "completion": answer,
            "status": "ok",
            "model": "gpt-4o-mini",
            "exact": False,
            "input_tokens": 10 + number,
            "output_tokens": 3,
            "temperature": 0.7,
            "reward": reward,
        }
        for number, (module, prompt, answer) in enumerate(CALLS)
    ]
    assert store.sql("SELECT run, program, status, reward, n_calls, input::VARCHAR AS input FROM rollouts").rows() == [
        {
            "run": "prod",
            "program": "find",
            "status": "ok",
            "reward": reward,
            "n_calls": 4,
            "input": '{"question":"who is bob\'s friend?"}'
            if name != "openinference"
            else '{"question": "who is bob\'s friend?"}',
        }
    ]


def test_rows_that_share_a_rollout_are_one(tracetune, tmp_path):
    """A table with columns of its own names is one row a call, in the table's order, with the rollout's reward."""
    header = "qid,step_name,asked,said,stars,who\n"
    rows = [
        f'q{who % 2},{module},"{prompt}","{answer}",{who / 4},{who}'
        for who in (1, 2)
        for module, prompt, answer in CALLS
    ]
    (tmp_path / "log.csv").write_text(header + "\n".join(rows))
    columns = (
        "prompt=asked",
        "completion=said",
        "reward=stars",
        "example_id=qid",
        "module=step_name",
        "rollout_id=who",
    )
    options = [option for column in columns for option in ("--column", column)]
    finished = tracetune("import", "store.duckdb", "log.csv", "--format", "rows", *options)
    # The reward stands in each row of its rollout; the last one counts.
    said = "store.duckdb: 8 spans and 8 log records are new, 0 were there already, 0 were refused\n"
    assert finished == Finished(0, "", said)
    store = Store(tmp_path / "store.duckdb")
    assert store.sql(
        "SELECT example_id, module, invocation, completion, reward FROM calls ORDER BY example_id, started_at, call_id"
    ).rows() == [
        {
            "example_id": f"q{who % 2}",
            "module": module,
            "invocation": number - 1 if module == "search" else 0,
            "completion": answer,
            "reward": who / 4,
        }
        for who in (2, 1)
        for number, (module, _, answer) in enumerate(CALLS)
    ]


def test_rows_without_a_rollout_are_rollouts_of_their_prompts(tracetune, tmp_path):
    """Answers to one prompt are one example's, so that they make a group."""
    rows = [{"prompt": "2 + 2?", "completion": text, "reward": text == "4"} for text in ("4", "5", "four")]
    (tmp_path / "log.parquet").write_bytes(parquet([{**row, "reward": float(row["reward"])} for row in rows]))
    assert tracetune("import", "store.duckdb", "log.parquet", "--format", "rows").status == 0
    store = Store(tmp_path / "store.duckdb")
    assert store.sql("SELECT module, size, n_rollouts FROM groups").rows() == [
        {"module": "program", "size": 3, "n_rollouts": 3}
    ]
    batch = store.groups()
    assert sorted((member.text, member.reward) for group in batch for member in group.members) == [
        ("4", 1.0),
        ("5", 0.0),
        ("four", 0.0),
    ]


REQUEST = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "2 + 2?"}], "temperature": 0.5, "n": 2}
RESPONSE = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "gpt-4o-mini-2024",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "4"}},
        {"index": 1, "finish_reason": "length", "message": {"role": "assistant", "content": "It is"}},
    ],
    "usage": {"prompt_tokens": 8, "completion_tokens": 5},
}
OPENAI = {
    "request and response": [{"request": REQUEST, "response": RESPONSE}],
    "a batch's two lines": [
        {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": REQUEST},
        {"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": RESPONSE}, "error": None},
    ],
    "a stored completion": [{**REQUEST, **RESPONSE, "model": "gpt-4o-mini"}],
}


@pytest.mark.parametrize("form", OPENAI)
def test_openai_requests_and_responses_are_calls(tracetune, tmp_path, form):
    """Each choice is a row, whose response id is the response's."""
    (tmp_path / "log.jsonl").write_bytes(lines(OPENAI[form]))
    assert tracetune("import", "store.duckdb", "log.jsonl", "--format", "openai").status == 0
    found = Store(tmp_path / "store.duckdb").sql(
        "SELECT choice, module, model, response_id, completion, finish_reason, sampling::VARCHAR AS sampling FROM calls"
        " ORDER BY choice"
    )
    shared = {"module": "program", "model": "gpt-4o-mini", "response_id": "chatcmpl-1"}
    assert found.rows() == [
        {**shared, "choice": 0, "completion": "4", "finish_reason": "stop", "sampling": '{"temperature":0.5}'},
        {**shared, "choice": 1, "completion": "It is", "finish_reason": "length", "sampling": '{"temperature":0.5}'},
    ]
