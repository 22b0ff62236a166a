"""Trainers by jobs: rounds, what is sent, what goes wrong, and what is never done twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fine_tuning_server import BASE_MODEL, KEY, FineTuningServer, one_certificate

from tracetune.errors import CheckpointError, InvalidInput, TrainerError
from tracetune.testing import ScriptedEnvironment
from tracetune.trainers import make_trainer
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.jobs.litellm import LiteLLMTrainer
from tracetune.trainers.jobs.openai import OpenAITrainer
from tracetune.trainers.jobs.state import State
from tracetune.trainers.jobs.trainer import JobTrainer

MODELS = [f"ft:{BASE_MODEL}:acme::ftjob-{number}" for number in (1, 2)]
KINDS = {"openai": OpenAITrainer, "litellm": LiteLLMTrainer}
MakeTrainer = Callable[..., JobTrainer]


@pytest.fixture
def service(tmp_path, monkeypatch) -> Iterator[FineTuningServer]:
    """A service that does what is asked."""
    monkeypatch.setenv("SSL_CERT_FILE", one_certificate(tmp_path))
    with FineTuningServer() as running:
        yield running


@pytest.fixture
def trainer(service) -> MakeTrainer:
    """Makes trainers that ask nobody, look often and wait for half a minute at most."""

    def make(kind: str = "openai", **settings: Any) -> JobTrainer:
        defaults = {
            "base_url": service.upstream.base_url,
            "api_key": KEY,
            "yes": True,
            "poll_interval": 0.01,
            "patience": 30.0,
        }
        return KINDS[kind](BASE_MODEL, **{**defaults, **settings})

    return make


@pytest.fixture
def environment(tmp_path) -> Callable[..., ScriptedEnvironment]:
    """Makes worlds of one step of one example and four rollouts, that share a folder of checkpoints."""

    def make(**settings: Any) -> ScriptedEnvironment:
        return ScriptedEnvironment(tmp_path / "checkpoints", **{"val": 0, "steps": 1, **settings})

    return make


def test_each_job_trains_the_model_of_the_one_before(service, trainer, environment):
    """A round's rollouts run on the present model, and its job's model answers the next round at the same address."""
    world = environment(steps=2, val=1, seed=7)
    policy = trainer(epochs=2, suffix="round").fit(world)
    first, second = service.jobs.values()
    (key,) = (first["metadata"]["tracetune"],)
    assert first == {
        "model": BASE_MODEL,
        "training_file": "file-1",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        "seed": 7,
        "suffix": "round",
        "metadata": {"tracetune": key},
    }
    assert (second["model"], second["training_file"]) == (MODELS[0], "file-2")
    assert service.files["file-1"][0] == f"tracetune-{key}.jsonl"
    models = [model for model, _ in service.chats]
    assert models == sorted(models, key=[BASE_MODEL, *MODELS].index)
    assert set(models) == {BASE_MODEL, *MODELS}
    assert {record.policy.base_url for record in world.recorded.policies} == {policy.base_url}
    assert [(record.policy.version, record.step) for record in world.recorded.policies] == [
        ("conformance@0", 0),
        ("conformance@1", 1),
        ("conformance@2", 2),
    ]


def test_training_rollouts_are_sampled_as_planned_and_evaluations_as_the_program_asks(service, trainer, environment):
    """The plan's temperature goes over the program's own while training rollouts are made."""
    trainer().fit(environment(val=1))
    assert [asked["temperature"] for _, asked in service.chats] == [*[0.0] * 2, *[1.0] * 10, *[0.0] * 2]


def test_the_best_of_each_group_is_what_a_job_is_given(service, trainer, environment):
    """Rows are the prompts that were sent, with the best completion of each group; the report counts the others."""
    world = environment()
    trainer().fit(world)
    best = world.rollout_sets[0].rollouts[-1]
    assert service.rows() == [
        {"messages": [*call.messages, {"role": "assistant", "content": call.completion}]}
        for call in sorted(best.calls, key=lambda call: (call.module, call.invocation))
    ]
    (report,) = world.reports
    assert (report.step, report.loss, report.tokens, report.used, report.skipped) == (
        1,
        pytest.approx(1 / 3),
        4321,
        3,
        {"not_best": 7},
    )
    (record,) = world.recorded.batches
    assert (record.batch, record.report, record.step) == (world.batches[0], report, 1)


def test_a_dpo_job_is_given_pairs(service, trainer, environment):
    """Of one prompt the best is preferred to the worst; what has no partner is counted."""
    world = environment()
    trainer(method="dpo", beta=0.2, margin=0.5).fit(world)
    (job,) = service.jobs.values()
    assert job["method"] == {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 3, "beta": 0.2}}}
    rollouts = world.rollout_sets[0].rollouts
    said = [[{"role": "assistant", "content": rollout.calls[0].completion}] for rollout in rollouts]
    assert service.rows() == [
        {
            "input": {"messages": rollouts[0].calls[0].messages},
            "preferred_output": said[3],
            "non_preferred_output": said[0],
        }
    ]
    assert world.reports[0].skipped == {"no_partner": 6, "too_close": 2}
    assert world.reports[0].used == 2


def test_weighted_rows_carry_their_advantage(service, trainer, environment):
    """Where the service weighs rows, all members are sent, bad ones with a weight below 0."""
    world = environment()
    trainer(select="weighted").fit(world)
    weights = [member.advantage for group in world.batches[0] for member in group.members]
    assert [row["weight"] for row in service.rows()] == weights
    assert min(weights) < 0 < max(weights)


def test_litellm_submits_the_same_rows(service, trainer, environment):
    """Method and metadata are what litellm leaves out; the rest is as with OpenAI's own client."""
    trainer("litellm", suffix="round").fit(environment())
    (job,) = service.jobs.values()
    assert job == {
        "model": BASE_MODEL,
        "training_file": "file-1",
        "hyperparameters": {"n_epochs": 3},
        "seed": 0,
        "suffix": "round",
    }
    assert len(service.rows()) == 3


def test_events_are_shown_and_the_job_is_in_the_journal(service, trainer, environment):
    """Each status and event is shown once; intent, upload and submission are recorded before the wait."""
    world = environment()
    trainer().fit(world)
    assert world.notices == [
        "job ftjob-1: validating_files",
        "job ftjob-1: Step 1: training loss=1.00",
        "job ftjob-1: running",
        "job ftjob-1: Step 2: training loss=0.50",
        "job ftjob-1: succeeded",
        "job ftjob-1: Step 3: training loss=0.33",
    ]
    jobs = world.recorded.jobs
    key = jobs[0].job_id
    assert [(job.job_id, job.provider, job.status, job.detail["file_id"]) for job in jobs] == [
        (key, "openai", "intended", None),
        (key, "openai", "uploaded", "file-1"),
        ("ftjob-1", "openai", "submitted", "file-1"),
        ("ftjob-1", "openai", "succeeded", "file-1"),
    ]
    assert {job.detail["key"] for job in jobs} == {key}
    assert jobs[-1].detail["model"] == MODELS[0]


def test_without_rows_there_is_no_job(service, trainer, environment):
    """A round from which nothing can be learned asks the service for nothing, and the policy stays."""
    world = environment(reward=lambda example, texts, index: 1.0)
    policy = trainer().fit(world)
    assert (set(service.asked), service.jobs, policy.version) == ({"chat"}, {}, "conformance@0")
    assert (world.reports[0].used, world.recorded.jobs) == (0, [])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("faults", "settings"),
    [
        (
            {"files": ["busy"], "upload": ["broken", "busy"], "create": ["busy", "broken"], "job": ["broken", "busy"]},
            {},
        ),
        ({"upload": ["lost"], "create": ["lost"], "job": ["lost"], "list": ["busy", "lost"], "events": ["lost"]}, {}),
        ({"create": ["heard"]}, {"request_timeout": 0.5}),
        ({"upload": ["silent"], "create": ["silent"], "job": ["silent"]}, {"request_timeout": 0.5}),
    ],
    ids=["refused for a while", "heard and cut off", "heard and never answered", "never heard"],
)
def test_a_service_in_trouble_is_asked_again_and_told_once(service, trainer, environment, kind, faults, settings):
    """Whatever fails on the way, in the end there is one file and one job."""
    service.faults = {name: list(each) for name, each in faults.items()}
    policy = trainer(kind, **settings).fit(environment())
    assert (len(service.files), len(service.jobs), policy.version) == (1, 1, "conformance@1")


def test_a_service_that_stays_in_trouble_is_given_up(service, trainer, environment):
    """After the time that it was given, the trainer stops with the service's words; nothing is lost."""
    service.faults = {"create": ["broken"] * 100}
    world = environment()
    with pytest.raises(TrainerError, match=r"^the service answers 500: out of order; it was asked for 0\.1 s: resume"):
        trainer(patience=0.1).fit(world)
    service.faults = {}
    again = environment(resume_from=world.checkpoints[1])
    assert trainer().fit(again).version == "conformance@1"
    assert (again.rollout_sets, len(service.files), len(service.jobs)) == ([], 1, 1)


def test_a_job_is_found_when_its_file_is_forgotten(service, trainer, environment):
    """A job that nobody was told of is found by the file that is known, though the service lists it no more."""
    service.faults = {"create": ["lost"], "list": ["broken"] * 100}
    world = environment()
    with pytest.raises(TrainerError, match=r"^the service answers 500"):
        trainer(patience=0.1).fit(world)
    service.faults, service.hides_files = {}, True
    trainer().fit(environment(resume_from=world.checkpoints[1]))
    assert (len(service.files), len(service.jobs)) == (1, 1)


def test_a_refusal_is_told_in_the_services_words(service, trainer, environment):
    """What the service will never take is not asked again."""
    service.faults = {"create": ["refused"]}
    with pytest.raises(TrainerError, match=r"^the service refuses with 400: the file has too few rows$"):
        trainer().fit(environment())
    assert service.asked["create"] == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["files", "upload", "create", "job"])
def test_a_web_page_is_no_answer(service, trainer, environment, kind, place):
    """An address that answers everything, but not as a fine-tuning service does, is named as the likely mistake."""
    service.faults = {place: ["page"]}
    with pytest.raises(
        TrainerError, match=r"^the service's answer is none of a fine-tuning service .*; check base_url$"
    ):
        trainer(kind).fit(environment())


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        ("failed", {"code": "bad_rows", "message": "row 3 is too long", "param": None}, "row 3 is too long"),
        ("cancelled", None, "no reason was given"),
    ],
)
def test_a_job_that_fails_is_told_and_submitted_anew_on_resume(service, trainer, environment, status, error, words):
    """The provider's message ends the run; going on submits the same rows under another key, without new rollouts."""
    service.statuses, service.error = ["running", status], error
    world = environment()
    base = service.upstream.base_url
    with pytest.raises(TrainerError, match=f"^job ftjob-1 of step 1 has {status} at {base}: {words}; resume the run"):
        trainer().fit(world)
    service.statuses = ["running", "succeeded"]
    again = environment(resume_from=world.checkpoints[1])
    trainer().fit(again)
    assert again.rollout_sets == []
    assert service.rows(0) == service.rows(1)
    keys = [job["metadata"]["tracetune"] for job in service.jobs.values()]
    assert len(set(keys)) == len(keys) == 2
    assert [job.status for job in world.recorded.jobs] == ["intended", "uploaded", "submitted", status]


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_takes_too_long_is_left_and_picked_up(service, trainer, environment, kind):
    """The wait ends, the job does not: going on finds it, among other jobs, and uploads nothing."""
    service.statuses = ["running"]
    world = environment()
    with pytest.raises(TrainerError, match=r"^job ftjob-1 is still running after 0\.05 s; resume the run later"):
        trainer(kind, time_limit=0.05).fit(world)
    service.statuses = ["succeeded"]
    again = environment(resume_from=world.checkpoints[1])
    assert trainer(kind).fit(again).version == "conformance@1"
    assert (len(service.files), len(service.jobs), again.rollout_sets) == (1, 1, [])
    assert again.reports[0].used == 3


def test_nothing_is_uploaded_unasked(service, trainer, environment):
    """Where nobody can be asked, the run stops before the upload, says what it would cost, and can go on from there."""
    world = environment()
    expected = (
        f"^nobody is here to confirm job 1 of 1, to train {BASE_MODEL} at {service.upstream.base_url}: 3 rows of about "
        r"\d+ tokens x 3 epochs, about \$0\.00 at \$1\.50 a million; pass yes=True to go ahead without being asked$"
    )
    with pytest.raises(TrainerError, match=expected):
        trainer(yes=False).fit(world)
    assert (service.files, service.jobs) == ({}, {})
    again = environment(resume_from=world.checkpoints[1])
    trainer().fit(again)
    assert (len(service.jobs), again.rollout_sets) == (1, [])


@pytest.mark.parametrize(("answer", "jobs"), [("y\n", 1), ("YES\n", 1), ("n\n", 0), ("\n", 0)])
def test_a_person_is_asked(service, trainer, environment, monkeypatch, answer, jobs):
    """On a terminal, yes goes ahead and anything else does not."""
    here, there = os.openpty()
    with os.fdopen(os.dup(there)) as keys, os.fdopen(there, "w") as screen:
        monkeypatch.setattr(sys, "stdin", keys)
        monkeypatch.setattr(sys, "stderr", screen)
        os.write(here, answer.encode())
        try:
            trainer(yes=False, price_per_million=2.0).fit(environment())
        except TrainerError as error:
            assert "was declined, and nothing was uploaded" in str(error)  # noqa: PT017  yes raises nothing
        shown = os.read(here, 4096).decode()
    os.close(here)
    assert "at $2.00 a million. Upload and start it? [y/N]" in shown
    assert (len(service.files), len(service.jobs)) == (jobs, jobs)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("openai", {"method": "rft"}, 'method is "supervised" or "dpo", not \'rft\''),
        ("openai", {"select": "worst"}, 'select is "best", "above" or "weighted", not \'worst\''),
        ("openai", {"beta": 0.1}, 'beta is of method "dpo" alone; leave it out, or train with that'),
        ("openai", {"epochs": 0}, "epochs must be at least 1, not 0"),
        ("openai", {"suffix": "x" * 65}, "suffix has 1 to 64 characters, not 65"),
        ("openai", {"patience": 0.0}, "patience must be more than 0 seconds, not 0"),
        ("litellm", {"method": "dpo"}, 'litellm cannot ask for method "dpo"; use the trainer "openai" for that'),
    ],
)
def test_settings_that_make_no_sense_are_refused(trainer, kind, settings, message):
    """Before anything runs, in one sentence."""
    with pytest.raises(InvalidInput) as raised:
        trainer(kind, **settings)
    assert str(raised.value) == message


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_needed(monkeypatch, kind):
    """Without a key, the variable that may hold it is named."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InvalidInput, match=r"OPENAI_API_KEY, or pass api_key$"):
        KINDS[kind](BASE_MODEL)


def test_a_model_that_must_be_deployed_first_is_refused():
    """What litellm can train elsewhere, but nobody answers for, is refused with the reason."""
    with pytest.raises(InvalidInput, match=r"^models that azure has trained answer only once they are deployed"):
        LiteLLMTrainer("azure/gpt-4o-mini", api_key=KEY)


def test_a_run_goes_on_with_its_own_settings_alone(service, trainer, environment):
    """Another model, address or method than the run's is refused before anything is asked."""
    world = environment()
    trainer().fit(world)
    again = environment(resume_from=world.checkpoints[1])
    asked = dict(service.asked)
    with pytest.raises(CheckpointError, match="was written with another base_url and method; resume with the settings"):
        trainer(base_url="http://127.0.0.1:1/v1", method="dpo").fit(again)
    assert dict(service.asked) == asked


def test_rows_that_were_changed_on_disk_are_not_submitted(service, trainer, environment):
    """A checkpoint whose rows are not those that were written is refused."""
    world = environment()
    with pytest.raises(TrainerError):
        trainer(yes=False).fit(world)
    rows = Path(world.checkpoints[1], "rows.jsonl")
    rows.write_bytes(rows.read_bytes().replace(b"assistant", b"user"))
    with pytest.raises(CheckpointError, match=r"ValueError: rows\.jsonl is not the file that was written"):
        trainer().fit(environment(resume_from=world.checkpoints[1]))


def test_a_trainer_serves_for_as_long_as_it_is_open(service, trainer, environment):
    """Whoever opens it around the training can ask the policy before and after; a second run needs another."""
    world = environment()
    with trainer() as opened:
        before = opened.open(world)
        assert world.ask(before)[0].startswith(f"{BASE_MODEL} ")
        after = opened.fit(world)
        assert world.ask(after)[0].startswith(f"{MODELS[0]} ")
    assert (after.base_url, after.api_key) == (before.base_url, before.api_key)
    with pytest.raises(TrainerError, match=r'this "openai" trainer has begun 1 steps; make a new one for a new run'):
        opened.open(environment())
    with pytest.raises(TrainerError, match='the trainer "openai" serves no policy; open it first, or fit it'):
        _ = opened.policy


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_found_by_name(kind):
    """`tt.optimize(trainer="openai", model=…)` makes one."""
    assert type(make_trainer(kind, model=BASE_MODEL, api_key=KEY)) is KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_and_no_password_of_the_service_stands_in_a_checkpoint(service, trainer, environment, tmp_path, kind):
    """A checkpoint says which service it is, and not how one gets in."""
    trainer(kind).fit(environment())
    written = b"\n".join(path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file())
    assert service.upstream.base_url.encode() in written
    assert KEY.encode() not in written


def test_a_password_in_the_services_address_is_not_told(tmp_path):
    """Neither a checkpoint's settings nor the endpoint's answers to a program show the password."""
    trainer = OpenAITrainer(BASE_MODEL, base_url="https://ann:swordfish-19@127.0.0.1:1/v1", api_key=KEY, yes=True)
    State(settings=trainer._settings, model=BASE_MODEL, trained=0, run_key="k").save(tmp_path)
    assert "https://ann:[redacted]@127.0.0.1:1/v1" in (tmp_path / "jobs.json").read_text()
    problem = Problem(502, "https://ann:swordfish-19@127.0.0.1:1/v1 could not be reached: ConnectError")
    assert (
        problem.body["error"]["message"] == "https://ann:[redacted]@127.0.0.1:1/v1 could not be reached: ConnectError"
    )
