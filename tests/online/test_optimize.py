"""The online loop, end to end: a real program, a real client, a real endpoint, a real trainer, and a small policy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import looped_program
import pytest
from looped_program import TRAIN, VAL, low_words, train, trainer, walk
from tiny_llama import tiny_model, tiny_tokenizer

import tracetune as tt
from tracetune.errors import (
    CheckpointError,
    InvalidInput,
    NoCompletions,
    RolloutsFailed,
    TrainerError,
    UnknownTrainer,
)
from tracetune.trainers.endpoint import LocalEndpoint
from tracetune.types import Completion, Example, Rollout

SCRIPT = Path(looped_program.__file__)


def rows(store: Path, query: str) -> list[tuple[Any, ...]]:
    """The answer to a query, as plain tuples."""
    return [tuple(row.values()) for row in tt.Store(store).sql(query).rows()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[tt.Result, list[tuple[int, dict[str, float]]]]:
    """Three steps with a validation before, after the second and at the end."""
    steps: list[tuple[int, dict[str, float]]] = []
    result = train(
        tmp_path_factory.mktemp("trained") / "a.duckdb",
        steps=3,
        val=VAL,
        validate_every=2,
        on_step=lambda step, figures: steps.append((step, figures)),
    )
    return result, steps


def test_the_result_tells_what_happened(trained: Any):
    """Validations, reports, the checkpoint and the version of the policy are in the result."""
    result, steps = trained
    assert (result.run, result.policy.version) == ("run-1", "run-1@3")
    assert [report.step for report in result.reports] == [1, 2, 3]
    assert sorted(result.validations) == [0, 2, 3]
    assert (result.before, result.after) == (result.validations[0], result.validations[3])
    assert result.before.n == len(VAL)
    assert result.checkpoint == result.store.with_name("a.duckdb.checkpoints") / "run-1" / "step-000003"
    assert [step for step, _ in steps] == [1, 2, 3]
    assert {"reward", "loss", "grad_norm", "groups", "failed", "tokens", "seconds"} <= set(steps[0][1])


def test_every_call_is_in_the_store_with_its_tokens(trained: Any):
    """Each rollout's calls are there with exact tokens and the policy version that sampled them."""
    result, _ = trained
    hops = {example.id: 1 + int(example.inputs["word"][1:]) % 2 for example in [*TRAIN, *VAL]}
    made = rows(
        result.store,
        "SELECT rollout_id, split, step, example_id, list(module ORDER BY started_at), bool_and(exact), "
        "list(DISTINCT policy_version) FROM calls GROUP BY ALL",
    )
    assert len(made) == 3 * 2 * 4 + 3 * len(VAL)
    for _, split, step, example_id, modules, exact, versions in made:
        sampled_by = f"run-1@{step - 1 if split == 'train' else step}"
        assert (modules, exact, versions) == (["hop"] * hops[example_id] + ["answer"], True, [sampled_by])
    assert rows(result.store, "SELECT count(*) FROM rollouts WHERE split = 'train'") == [(3 * 2 * 4,)]
    assert rows(result.store, "SELECT DISTINCT status, program FROM rollouts") == [("ok", "walk")]
    mismatched = "SELECT count(*) FROM calls WHERE len(completion_token_ids) <> len(completion_logprobs)"
    assert rows(result.store, mismatched) == [(0,)]


def test_training_samples_and_validation_is_greedy(trained: Any):
    """Training rollouts go over the program's temperature 0; validation keeps it."""
    result, _ = trained
    assert rows(
        result.store,
        "SELECT DISTINCT split, (sampling->>'temperature')::DOUBLE AS temperature, on_policy FROM calls ORDER BY split",
    ) == [("train", 1.0, True), ("val", 0.0, False)]


def test_what_was_trained_on_is_saved(trained: Any):
    """Each step's batch is in the store with its members and its figures, and the policies in their order."""
    result, _ = trained
    assert rows(result.store, "SELECT step FROM batches ORDER BY step") == [(1,), (2,), (3,)]
    assert rows(result.store, "SELECT version, step FROM policies ORDER BY step") == [
        ("run-1@0", 0),
        ("run-1@1", 1),
        ("run-1@2", 2),
        ("run-1@3", 3),
    ]


def test_weights_changed(trained: Any):
    """Something was learned from: gradients were not zero and tokens were counted."""
    result, _ = trained
    assert all(report.grad_norm > 0 and report.tokens > 0 and report.used > 0 for report in result.reports)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path):
    """Killed in its second or third step and resumed, a run does the remaining steps; no rollout is used twice."""
    store = tmp_path / "a.duckdb"
    command = [sys.executable, str(SCRIPT), str(store)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    with subprocess.Popen([*command, "500"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["1\n", "2\n", "3\n"]
        process.send_signal(signal.SIGKILL)
    last = int(max((tmp_path / "a.duckdb.checkpoints" / "run-1").glob("step-*")).name.removeprefix("step-"))
    resumed = subprocess.run([*command, str(last + 2), "--resume"], env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.split() == [str(last + 1), str(last + 2)]
    in_force = "FROM rollouts WHERE split = 'train' AND NOT superseded"
    per_step = rows(store, f"SELECT step, count(*) {in_force} GROUP BY step ORDER BY step")
    assert per_step == [(step, 8) for step in range(1, last + 3)]
    used = (
        "SELECT count(*) - count(DISTINCT rollout_id) FROM (SELECT DISTINCT record_id, rollout_id FROM batch_members)"
    )
    assert rows(store, used) == [(0,)]
    inexact = f"SELECT count(*) FROM calls WHERE NOT exact AND rollout_id IN (SELECT rollout_id {in_force})"
    assert rows(store, inexact) == [(0,)]


def test_a_resumed_run_learns_what_one_run_would_have(tmp_path: Path):
    """The order of examples and the seeds go on: two steps and two resumed ones see the examples of four."""
    straight, halves = tmp_path / "straight.duckdb", tmp_path / "halves.duckdb"
    train(straight, steps=4)
    train(halves, steps=2)
    assert train(halves, steps=4, resume=True).policy.version == "run-1@4"
    query = "SELECT DISTINCT step, example_id FROM rollouts WHERE split = 'train' ORDER BY ALL"
    assert rows(straight, query) == rows(halves, query)


def test_each_run_has_a_name_of_its_own(tmp_path: Path):
    """Names that are not given count up; one that is taken is refused, because it would mix two runs."""
    store = tmp_path / "a.duckdb"
    assert [train(store, steps=1).run for _ in range(2)] == ["run-1", "run-2"]
    with pytest.raises(InvalidInput, match=r"run 'run-1' is already in .*a\.duckdb or its checkpoints; pass resume"):
        train(store, run="run-1")
    store.unlink()
    assert train(store, steps=1).run == "run-3"  # the checkpoints of the first two are still there


def test_there_must_be_something_to_resume(tmp_path: Path):
    """Resuming without a checkpoint says so instead of starting over."""
    with pytest.raises(CheckpointError, match="has no run to resume; start without resume"):
        train(tmp_path / "a.duckdb", resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be more than 0, not 0"),
        ({"rollouts": -1}, "rollouts must be more than 0, not -1"),
        ({"timeout": 0}, "timeout must be more than 0, not 0"),
        ({"val": [TRAIN[0], TRAIN[0]]}, "two examples of val have the id 't0'"),
        ({"run": "../escape"}, "run '../escape' names a folder too"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_recorded(tmp_path: Path, settings: dict[str, Any], message: str):
    """One sentence says which setting and why, and no store is made."""
    with pytest.raises(InvalidInput) as caught:
        train(tmp_path / "a.duckdb", **settings)
    assert message in str(caught.value)
    assert not rows(tmp_path / "a.duckdb", "FROM rollouts")


def test_a_trainer_lives_for_one_run(tmp_path: Path):
    """A trainer that has learned in one run is refused by the next, instead of counting its steps as done."""
    learner = trainer()
    settings = {"store": tmp_path / "a.duckdb", "steps": 1, "examples_per_step": 2, "rollouts": 4, "progress": False}
    tt.optimize(walk, TRAIN, low_words, learner, **settings)
    with pytest.raises(TrainerError, match='this "local" trainer has made 1 steps already; make a new one'):
        tt.optimize(walk, TRAIN, low_words, learner, **settings)


def test_no_examples_no_training(tmp_path: Path):
    """An empty training set is refused."""
    with pytest.raises(InvalidInput, match="train has no examples"):
        tt.optimize(walk, [], low_words, trainer(), store=tmp_path / "a.duckdb")


def test_an_unknown_trainer_is_named(tmp_path: Path):
    """The message lists what is installed."""
    with pytest.raises(UnknownTrainer, match=r'no trainer is called "lokal"; installed: .*local'):
        tt.optimize(walk, TRAIN, low_words, "lokal", store=tmp_path / "a.duckdb")


def test_a_program_that_always_crashes_stops_the_run(tmp_path: Path):
    """Nothing succeeded at all: the run stops, the cause is the program's own error, and the rollouts are kept."""

    @tt.program
    def broken(word: str) -> str:
        raise LookupError(f"no {word}")

    message = "all 8 rollouts of train step 1 failed, the first with LookupError: no w"
    with pytest.raises(RolloutsFailed, match=message) as caught:
        tt.optimize(
            broken, TRAIN, low_words, trainer(), store=tmp_path / "a.duckdb", steps=1, examples_per_step=2, rollouts=4,
            progress=False,
        )  # fmt: skip
    assert isinstance(caught.value.__cause__, LookupError)
    assert rows(tmp_path / "a.duckdb", "SELECT status, error_type, count(*) FROM rollouts GROUP BY ALL") == [
        ("error", "LookupError", 8)
    ]


def test_a_reward_that_always_raises_stops_the_run(tmp_path: Path):
    """A reward function that never gives a number stops the run with its own error as the cause."""

    def broken(example: Example, output: str, rollout: Rollout) -> float:
        return float("nan")

    with pytest.raises(RolloutsFailed, match="none of the 8 finished rollouts of train step 1 could be scored"):
        tt.optimize(
            walk, TRAIN, broken, trainer(), store=tmp_path / "a.duckdb", steps=1, examples_per_step=2, rollouts=4,
            progress=False,
        )  # fmt: skip


def test_a_program_that_asks_somebody_else_is_found_out(tmp_path: Path):
    """A first step whose calls never reach the policy stops, and says how to route them."""

    @tt.program
    def elsewhere(word: str) -> str:
        tt.record_call(messages=[{"role": "user", "content": word}], completion="w1", model="gpt-4o-mini")
        return "w1"

    with pytest.raises(NoCompletions, match="step 1 made 8 calls and none reached the policy endpoint"):
        tt.optimize(
            elsewhere, TRAIN, low_words, trainer(), store=tmp_path / "a.duckdb", steps=1, examples_per_step=2,
            rollouts=4, progress=False,
        )  # fmt: skip


def test_a_program_configured_by_the_environment_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """export_env points OpenAI's variables at the policy, a hard-coded model name is mapped, and all is put back."""
    from openai import OpenAI

    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    @tt.program
    def plain(word: str) -> str:
        reply = OpenAI().chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": word}], max_tokens=3
        )
        return reply.choices[0].message.content or ""

    result = tt.optimize(
        plain, TRAIN, low_words, trainer(), store=tmp_path / "a.duckdb", steps=1, examples_per_step=2, rollouts=4,
        models={"gpt-4o-mini": "policy"}, export_env=True, progress=False,
    )  # fmt: skip
    assert result.reports[0].used > 0
    assert rows(result.store, "SELECT DISTINCT module, model, exact FROM calls") == [("plain", "gpt-4o-mini", True)]
    assert (os.environ["OPENAI_BASE_URL"], os.environ.get("OPENAI_API_KEY")) == ("http://127.0.0.1:9/v1", None)


def test_a_fixed_outside_model_goes_on_answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Calls of a model that is not the policy go to the address and key that were there before; it is not trained."""
    from openai import OpenAI

    @tt.module
    def ask_policy(word: str) -> str:
        return complete("policy", word)

    @tt.module
    def ask_judge(word: str) -> str:
        return complete("judge", word)

    def complete(model: str, word: str) -> str:
        reply = OpenAI().chat.completions.create(
            model=model, messages=[{"role": "user", "content": word}], max_tokens=3
        )
        return reply.choices[0].message.content or ""

    @tt.program
    def judged(word: str) -> str:
        return ask_judge(ask_policy(word))

    journal = Completions()
    with LocalEndpoint(tiny_model(1), tiny_tokenizer(), name="judge", version="fixed", journal=journal) as judge:
        monkeypatch.setenv("OPENAI_BASE_URL", judge.policy.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", judge.policy.api_key)
        result = tt.optimize(
            judged, TRAIN, low_words, trainer(), store=tmp_path / "a.duckdb", steps=1, examples_per_step=2,
            rollouts=4, grouping=tt.Grouping(modules=("ask_policy",)), export_env=True, progress=False,
        )  # fmt: skip
    assert [completion.model for completion in journal.seen] == ["judge"] * 8
    assert rows(result.store, "SELECT module, model, exact, count(*) FROM calls GROUP BY ALL ORDER BY module") == [
        ("ask_judge", "judge", False, 8),
        ("ask_policy", "policy", True, 8),
    ]
    trained = "SELECT DISTINCT module FROM batch_members JOIN calls USING (call_id)"
    assert rows(result.store, trained) == [("ask_policy",)]


class Completions:
    """A journal that only listens."""

    def __init__(self) -> None:
        self.seen: list[Completion] = []

    def completion(self, completion: Completion) -> None:
        """Keep it."""
        self.seen.append(completion)

    def policy(self, policy: Any, **what: Any) -> None:
        """Nothing to keep."""

    def batch(self, batch: Any, report: Any, **what: Any) -> None:
        """Nothing to keep."""

    def job(self, job_id: str, **what: Any) -> None:
        """Nothing to keep."""
