"""What the DSPy adapter records: real programs, with DSPy's own client, against a real server."""

from __future__ import annotations

import os

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the network for prices

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import orjson
import pytest
from dspy.adapters.types.tool import Tool
from dspy.clients import execution
from dspy.utils.exceptions import AdapterParseError
from framework_trees import call, module, program, tool, trees_of

import tracetune
from tracetune import adapters, tracer
from tracetune.errors import RolloutClosed
from tracetune.types import Policy


class TwoAnswers(dspy.Module):  # type: ignore[misc]  # DSPy has no types
    """Two predictors of one signature, one of them with a demonstration, and a tool between them."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("question -> answer")
        self.check = dspy.Predict("question -> answer")
        self.check.demos = [dspy.Example(question="2 + 2?", answer="4")]
        self.look_up = Tool(lambda text: text.upper(), name="look_up", args={"text": {"type": "string"}})

    def forward(self, question: str) -> str:
        """Guess, look up, and check."""
        return str(self.check(question=self.look_up(text=self.guess(question=question).answer)).answer)

    async def aforward(self, question: str) -> str:
        """The same, async."""
        guess = await self.guess.acall(question=question)
        return str((await self.check.acall(question=self.look_up(text=guess.answer))).answer)


def said(answer: str) -> str:
    """An answer in the form that DSPy asks for."""
    return f"[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"


TREE = [module("guess", call()), tool("look_up"), module("check", call())]


@pytest.fixture
def lm(model_server: Any) -> Iterator[Any]:
    """DSPy's client of the server, in force."""
    lm = dspy.LM("openai/tiny", api_base=model_server.url, api_key="key", cache=False, num_retries=0, temperature=0.5)
    with dspy.context(lm=lm):
        yield lm


@pytest.mark.parametrize("engine", ["auto", "litellm"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_two_predictors_of_one_signature(
    asynchronous: bool, engine: str, lm: Any, model_server: Any, store: Path, spool: Path
) -> None:
    """They are two modules; each call has the prompt that was sent, demonstrations and all, and its response's id."""
    model_server.says += [said("ann"), said("bob")]

    @tracer.program
    async def find() -> str:
        lm_of_engine = lm.copy() if engine == "auto" else dspy.LM(**{**settings_of(lm), "engine": engine})
        with dspy.context(lm=lm_of_engine):
            return str(await TwoAnswers().acall(question="who?") if asynchronous else TwoAnswers()(question="who?"))

    with tracetune.record(store, instrument=["dspy"]):
        assert await find() == "bob"
    assert trees_of(spool) == [program("find", *TREE)]
    rows = tracetune.Store(store).sql("SELECT * FROM calls ORDER BY started_at").rows()
    assert [(row["module"], row["messages"], row["completion"], row["response_id"]) for row in rows] == [
        (name, compact(body["messages"]), text, f"chatcmpl-{number}")
        for number, (name, text, (_, body)) in enumerate(
            zip(["guess", "check"], [said("ann"), said("bob")], model_server.requests, strict=True), 1
        )
    ]
    assert "2 + 2?" in rows[1]["messages"]
    assert {(row["finish_reason"], row["input_tokens"], row["output_tokens"]) for row in rows} == {("stop", 7, 3)}


def settings_of(lm: Any) -> dict[str, Any]:
    """What a client was made with."""
    return {"model": lm.model, "cache": False, "num_retries": 0, **lm.kwargs}


def compact(messages: Any) -> str:
    """Messages as the store keeps them."""
    return orjson.dumps(messages).decode()


def test_a_completion_of_the_wrong_form(lm: Any, model_server: Any, store: Path, spool: Path) -> None:
    """It ends the rollout as a format error, and is kept with its text; DSPy's second try is the next turn."""
    model_server.says += [said("ann"), "what?", "what??"]
    with tracetune.record(store, instrument=["dspy"]), pytest.raises(AdapterParseError):
        TwoAnswers()(question="who?")
    failed = module("check", call(0), call(1), status="format_error")
    assert trees_of(spool) == [program("TwoAnswers", *TREE[:2], failed, status="format_error")]
    rows = tracetune.Store(store)
    assert rows.sql("SELECT status, program FROM rollouts").rows() == [
        {"status": "format_error", "program": "TwoAnswers"}
    ]
    texts = rows.sql("SELECT module, turn, completion FROM calls ORDER BY started_at").rows()
    assert [tuple(row.values()) for row in texts] == [
        ("guess", 0, said("ann")),
        ("check", 0, "what?"),
        ("check", 1, "what??"),
    ]


def test_groups_of_two_predictors_with_a_demonstration_and_parse_failures(
    lm: Any, model_server: Any, store: Path
) -> None:
    """Predictors of one signature are compared apart, a try with its like, and what DSPy could not parse stands there.

    The first rollout is parsed at once; the second at DSPy's second try; the third never,
    and earns the format's reward, while it keeps its calls.
    """
    scripts = {
        "r1": ([said("ann"), said("bob")], 1.0),
        "r2": ([said("amy"), "what?", '{"answer": "cy"}'], 0.25),
        "r3": ([said("abe"), "why?", "why??"], None),
    }
    sent: dict[str, list[Any]] = {}
    with tracetune.record(store, run="try-1", instrument=["dspy"]):
        for rollout_id, (texts, reward) in scripts.items():
            asked = len(model_server.requests)
            model_server.says += texts
            with tracer.rollout(id=rollout_id, example_id="q1"), suppress(AdapterParseError):
                TwoAnswers()(question="who?")
                tracetune.reward(reward)
            sent[rollout_id] = [body["messages"] for _, body in model_server.requests[asked:]]
    batch = tracetune.Store(store).groups(tracetune.Grouping(drop_constant=False))
    shown = {
        group.id: [
            (one.rollout_id, one.text, one.reward, round(one.advantage, 3), list(one.messages))
            for one in sorted(group.members, key=lambda one: one.rollout_id)
        ]
        for group in batch.groups
    }
    assert shown == {
        "try-1///q1/guess//0/0": [
            ("r1", said("ann"), 1.0, 0.907, sent["r1"][0]),
            ("r2", said("amy"), 0.25, 0.165, sent["r2"][0]),
            ("r3", said("abe"), -1.0, -1.072, sent["r3"][0]),
        ],
        "try-1///q1/check//0/0": [
            ("r1", said("bob"), 1.0, 0.907, sent["r1"][1]),
            ("r2", "what?", 0.25, 0.165, sent["r2"][1]),
            ("r3", "why?", -1.0, -1.072, sent["r3"][1]),
        ],
        "try-1///q1/check//0/1": [
            ("r2", '{"answer": "cy"}', 0.25, 0.707, sent["r2"][2]),
            ("r3", "why??", -1.0, -0.707, sent["r3"][2]),
        ],
    }
    has_demonstration = {
        group: ["2 + 2?" in str(messages) for *_, messages in members] for group, members in shown.items()
    }
    assert has_demonstration == {
        "try-1///q1/guess//0/0": [False] * 3,
        "try-1///q1/check//0/0": [True] * 3,
        "try-1///q1/check//0/1": [True] * 2,
    }
    assert list(batch.left_out) == []
    view = "SELECT module, invocation, turn, size, n_rollouts FROM groups ORDER BY ALL"
    assert [tuple(row.values()) for row in tracetune.Store(store).sql(view).rows()] == [
        ("check", 0, 0, 3, 3),
        ("check", 0, 1, 2, 2),
        ("guess", 0, 0, 3, 3),
    ]


def test_predictors_on_their_own(lm: Any, model_server: Any, store: Path, spool: Path) -> None:
    """One that is called by itself is named by its signature; a request without any is the program's."""

    class Sort(dspy.Signature):  # type: ignore[misc]  # as above
        """Sort it."""

        text: str = dspy.InputField()
        label: str = dspy.OutputField()

    model_server.says += [said("ann"), "[[ ## label ## ]]\nx", "[[ ## reasoning ## ]]\nr\n\n[[ ## label ## ]]\ny"]

    @tracer.program
    def find() -> None:
        dspy.Predict("question -> answer")(question="who?")
        dspy.Predict(Sort)(text="a")
        dspy.ChainOfThought(Sort)(text="b")
        lm("hi")

    with tracetune.record(store, instrument=["dspy"]):
        find()
    names = ("question -> answer", "Sort", "text -> reasoning, label")  # the last is a new signature of DSPy's
    assert trees_of(spool) == [program("find", *(module(name, call()) for name in names), call())]


def test_a_policy_is_sampled_anew(lm: Any, model_server: Any, store: Path) -> None:
    """DSPy's cache does not answer for a policy in force; elsewhere it does, and the call says so."""
    dspy.configure_cache(enable_disk_cache=False)  # one on disk would remember the last time that this ran
    cached = lm.copy(cache=True, temperature=0.25)
    policy = Policy(model_server.url, "key", "tiny", "try@0")
    with tracetune.record(store, instrument=["dspy"]):
        cached("a question of this test alone")
        cached("a question of this test alone")
        with tracer.rollout(policy=policy):
            cached("a question of this test alone")
    assert len(model_server.requests) == 2
    rows = tracetune.Store(store).sql("SELECT cached, response_id FROM calls ORDER BY started_at").rows()
    assert [tuple(row.values()) for row in rows] == [
        (False, "chatcmpl-1"),
        (True, "chatcmpl-1"),
        (False, "chatcmpl-2"),
    ]


def test_dspy_is_as_it_was(lm: Any, model_server: Any, store: Path) -> None:
    """Undone, everything is DSPy's own; of a rollout that was closed no request goes out."""
    originals = (dspy.Module.__call__, dspy.Module.acall, Tool.__call__, execution.execute, execution.aexecute)
    adapters.instrument("dspy")
    assert execution.execute is not originals[3]
    adapters.uninstrument("dspy")
    assert originals == (dspy.Module.__call__, dspy.Module.acall, Tool.__call__, execution.execute, execution.aexecute)
    with tracetune.record(store, instrument=["dspy"]), tracer.rollout(id="r1") as rollout:
        rollout.close("timeout")
        with pytest.raises(RolloutClosed):
            TwoAnswers()(question="who?")
    assert model_server.requests == []
