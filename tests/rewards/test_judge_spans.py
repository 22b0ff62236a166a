"""A judge's calls in the store: as scores, once each, and in no group."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from looped_program import TRAIN, trainer, walk

import tracetune as tt
from tracetune.rewards import judge
from tracetune.testing import span_tree
from tracetune.tracer import names
from tracetune.types import Example

EXAMPLES = [Example("q1", {"word": "red"}), Example("q2", {"word": "blue"})]
EIGHT = '{"feedback": "right", "score": 8}'
COUNTED = "SELECT kind, status, model, count(*) AS n FROM calls GROUP BY ALL ORDER BY ALL"


@tt.module
def answer(word: str) -> str:
    """A module whose model is a home-made one."""
    tt.record_call(messages=[{"role": "user", "content": word}], completion=word.upper(), model="own")
    return word.upper()


@tt.program
def say(word: str) -> str:
    """One call."""
    return answer(word)


def rows(store: str, query: str) -> list[tuple]:
    """The rows of a query, without names."""
    return [tuple(row.values()) for row in tt.Store(store).sql(query).rows()]


@pytest.fixture
def provider(monkeypatch) -> str:
    """A provider of litellm's that asks with OpenAI's SDK, which the adapter records."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm  # here, as it takes seconds

    class ByTheSDK(litellm.CustomLLM):
        def completion(self, *arguments: Any, model: str, messages: list, api_base: str, **settings: Any) -> Any:
            with openai.OpenAI(base_url=api_base, api_key="secret-key") as client:
                reply = client.chat.completions.create(model=model, messages=messages)
            return litellm.ModelResponse(**reply.model_dump())

    monkeypatch.setattr(litellm, "custom_provider_map", [{"provider": "sdk", "custom_handler": ByTheSDK()}])
    return "sdk"


@pytest.mark.parametrize("adapters", [(), ("openai",)], ids=["alone", "instrumented"])
def test_a_judge_inside_a_rollout_is_a_score(server, provider, tmp_path, adapters):
    """Its request is one call of kind score, whether or not the client beneath is recorded too."""
    server.answers = [EIGHT]
    reward = judge("right", **{**server.settings, "model": f"{provider}/judge"})
    store = str(tmp_path / "traces.duckdb")
    with tt.record(store, instrument=adapters):
        for example in EXAMPLES:
            for _ in range(2):
                with tt.rollout(example_id=example.id):
                    tt.reward(reward(example, say(**example.inputs)))
    # Of two spans of one call the inner one counts, which names the model without its provider.
    judged = "judge" if adapters else "sdk/judge"
    assert rows(store, COUNTED) == [("call", "ok", "own", 4), ("score", "ok", judged, 4)]
    assert rows(store, "SELECT DISTINCT module FROM groups") == [("answer",)]
    assert rows(store, "SELECT DISTINCT reward FROM rollouts") == [(0.8,)]
    assert rows(store, "SELECT DISTINCT feedback FROM scores") == [("right",)]


def test_optimize_takes_a_judge_for_its_reward(server, tmp_path):
    """Rewards of a run are the judge's, whose calls are scores of the rollouts that it judged, and in no group."""
    server.answers = [lambda request: json.dumps({"score": len(request["messages"][1]["content"]) % 11})]
    store = tmp_path / "traces.duckdb"
    settings = {"store": store, "steps": 1, "examples_per_step": 2, "rollouts": 4, "progress": False}
    tt.optimize(walk, TRAIN, judge("right", **server.settings), trainer(), **settings)
    counted = dict(rows(str(store), "SELECT kind, count(DISTINCT rollout_id) FROM calls GROUP BY kind"))
    assert counted == {"call": 8, "score": 8}
    assert {module for (module,) in rows(str(store), "SELECT DISTINCT module FROM groups")} <= {"hop", "answer"}
    assert len(server.requests) == 8


def test_a_judge_takes_no_turn_of_the_module_it_is_asked_in(server, tmp_path):
    """A module that has its answer judged before it asks again goes on with its next turn."""
    server.answers = [EIGHT]
    reward = judge("right", **server.settings)

    @tt.program
    def twice(word: str) -> str:
        first = answer.__wrapped__(word)
        reward(EXAMPLES[0], first)
        return answer.__wrapped__(first)

    store = str(tmp_path / "traces.duckdb")
    with tt.record(store):
        twice("red")
    [program] = span_tree(f"{store}.spool", attributes=(names.CALL_KIND, names.TURN))
    turns = [tuple(call["attributes"].values()) for call in program["children"]]
    assert turns == [("call", 0), ("score", 0), ("call", 1)]


def test_every_attempt_is_a_call(server, tmp_path):
    """What failed was asked too: it is recorded with its status, and the answer with its text and tokens."""
    server.answers = [(500, {}), "no idea", EIGHT]
    store = str(tmp_path / "traces.duckdb")
    with tt.record(store), tt.rollout(example_id="q1"):
        tt.reward(judge("right", **server.settings)(EXAMPLES[0], "red"))
    assert rows(store, "SELECT kind, status, completion FROM calls ORDER BY started_at") == [
        ("score", "error", None),
        ("score", "ok", "no idea"),
        ("score", "ok", EIGHT),
    ]


def test_a_judge_outside_any_rollout_is_no_call_of_a_program(server, tmp_path):
    """Scores of stored rollouts, given later, leave calls that belong to no group."""
    server.answers = [EIGHT]
    store = str(tmp_path / "traces.duckdb")
    with tt.record(store):
        assert judge("right", **server.settings)(EXAMPLES[0], "red").value == 0.8
    assert {kind for kind, *_ in rows(store, COUNTED)} <= {"score"}
    assert rows(store, "SELECT * FROM groups") == []


def test_nothing_is_recorded_where_nothing_records(server):
    """A judge is a function like any other."""
    server.answers = [EIGHT]
    assert judge("right", **server.settings)(EXAMPLES[0], "red").value == 0.8
    assert "x-tracetune-call" not in server.headers[0]
