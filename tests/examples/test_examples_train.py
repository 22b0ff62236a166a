"""The examples train the bundled policy, and every call is one of a node, with exact tokens."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices

import pytest

import tracetune as tt


@pytest.mark.parametrize(
    ("example", "modules"),
    [
        ("plain_python", {"hop", "answer"}),
        ("langgraph_agent", {"search", "answer"}),
        ("dspy_program", {"hop", "answer"}),
    ],
)
def test_it_trains(
    example: str, modules: set[str], repository: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """A step of it has a call for each prompt that was sent, in its node and counted, and all have their tokens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{example}.py", "--steps", "1", "--val", "4"])
    runpy.run_path(str(repository / "examples" / f"{example}.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("held-out reward ")
    store = tt.Store(tmp_path / f"{example}.duckdb")
    calls = store.sql("SELECT * FROM calls").rows()
    assert {call["module"] for call in calls} == modules
    assert {(call["exact"], call["cached"], call["unordered"], call["late"]) for call in calls} == {
        (True, False, False, False)
    }
    ((completions,),) = [tuple(row.values()) for row in store.sql("SELECT count(*) AS n FROM completions").rows()]
    assert len(calls) == completions
    counted = store.sql(
        "SELECT rollout_id, module, list(invocation ORDER BY started_at) AS invocations FROM calls GROUP BY ALL"
    ).rows()
    assert all(row["invocations"] == list(range(len(row["invocations"]))) for row in counted)
    assert max(len(row["invocations"]) for row in counted) > 1
