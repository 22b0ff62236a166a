"""The loop of a weight trainer: what it asks of its environment and its endpoint, and in which order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import torch
from tiny_llama import group, member

from tracetune.errors import NoCompletions, TrainerError
from tracetune.trainers import WeightTrainer
from tracetune.types import (
    Call,
    Capabilities,
    Environment,
    Evaluation,
    Example,
    GroupBatch,
    Plan,
    Policy,
    Rollout,
    RolloutSet,
    Sampling,
    StepReport,
)

TRAINING = Sampling(temperature=0.9)


class RecordingEndpoint:
    """An endpoint that writes down what happens to it."""

    def __init__(self, events: list, version: str) -> None:
        self.events, self.version = events, version
        self.sampling = None
        self.completions_served = 0

    @property
    def policy(self) -> Policy:
        return Policy("http://nowhere", "key", "policy", self.version)

    def start(self) -> None:
        self.events.append("start")

    def stop(self) -> None:
        self.events.append("stop")

    def publish(self, version: str) -> None:
        self.version = version
        self.events.append(f"publish {version}")

    def exclusively(self, work):
        self.events.append("exclusive")
        result = work()
        self.events.append("shared")
        return result


class CountingTrainer(WeightTrainer):
    """A trainer whose weights are the number of steps; it learns from every batch but an empty one."""

    name = "counting"
    capabilities = Capabilities(weights=True)

    def __init__(self, events: list) -> None:
        super().__init__()
        self.events = events

    def step(self, batch: GroupBatch) -> StepReport:
        self.steps_done += 1
        self.events.append(f"step {self.steps_done}")
        return StepReport(self.steps_done, 0.0, None, 0.0, None, 0.0, 0, 0.0, batch.n_members, {})

    def save(self, folder: Path) -> None:
        (folder / "steps").write_text(str(self.steps_done))

    def load(self, folder: Path) -> None:
        self.steps_done = int((folder / "steps").read_text())

    def endpoint(self, env: Environment, version: str) -> RecordingEndpoint:
        self.served = RecordingEndpoint(self.events, version)
        return self.served


class RecordingEnvironment:
    """A world whose rollouts make two calls each, all of which reach the policy unless told otherwise."""

    def __init__(
        self, trainer, events, folder, *, steps=2, val=0, reach=True, calls=2, resume_from=None, **plan
    ) -> None:
        self.plan = Plan("run", steps=steps, examples_per_step=1, rollouts=2, sampling=TRAINING, **plan)
        self.train = [Example("q1", {})]
        self.val = [Example(f"v{index}", {}) for index in range(val)]
        self.resume_from = resume_from
        self.journal = SimpleNamespace(
            policy=lambda policy, *, step, trainer: events.append(f"policy {policy.version} of {trainer} at {step}"),
            batch=lambda batch, report, *, step, policy_version: events.append(f"batch {step} from {policy_version}"),
        )
        self.trainer, self.events, self.folder, self.reach, self.calls = trainer, events, folder, reach, calls
        self.batch = GroupBatch([group(member([1], [2], 1.0))])

    def examples(self, step):
        return self.train

    def rollouts(self, examples, n, policy, split, *, step):
        self.events.append(f"{n} rollouts {step} of {policy.version} at {self.trainer.served.sampling}")
        self.trainer.served.completions_served += self.calls * n if self.reach else 0
        calls = [Call(f"c{index}", "r", "hop") for index in range(self.calls)]
        return RolloutSet("run", split, step, examples, [Rollout(f"r{index}", "q1", calls=calls) for index in range(n)])

    def groups(self, rollouts, grouping):
        return self.batch

    def evaluate(self, policy, examples=None, *, step):
        self.events.append(f"evaluate {step} of {policy.version} at {self.trainer.served.sampling}")
        return Evaluation(0.0, (), 0, 0, policy.version)

    def checkpoint(self, state):
        folder = self.folder / str(state.step)
        folder.mkdir()
        state.save(folder)
        self.events.append(f"checkpoint {state.step}")

    def report(self, report, rollouts, batch):
        self.events.append(f"report {report.step}")


@pytest.fixture
def world(tmp_path):
    """Makes a trainer, its environment, and the list of what happens."""

    def make(**settings):
        events: list[str] = []
        trainer = CountingTrainer(events)
        return trainer, RecordingEnvironment(trainer, events, tmp_path, **settings), events

    return make


def test_a_run_from_beginning_to_end(world):
    """Weights change while nothing is decoded, the new version is in force before the next rollouts, all is kept."""
    trainer, env, events = world(steps=2, val=1, validate_every=1)
    policy = trainer.fit(env)
    assert policy.version == "run@2"
    assert events == [
        "start",
        "policy run@0 of counting at 0",
        "evaluate 0 of run@0 at None",
        f"2 rollouts 1 of run@0 at {TRAINING}",
        "exclusive",
        "step 1",
        "publish run@1",
        "shared",
        "batch 1 from run@0",
        "policy run@1 of counting at 1",
        "checkpoint 1",
        "report 1",
        "evaluate 1 of run@1 at None",
        f"2 rollouts 2 of run@1 at {TRAINING}",
        "exclusive",
        "step 2",
        "publish run@2",
        "shared",
        "batch 2 from run@1",
        "policy run@2 of counting at 2",
        "checkpoint 2",
        "report 2",
        "evaluate 2 of run@2 at None",
        "stop",
    ]


def test_a_trainer_that_was_opened_answers_before_and_after(world):
    """Whoever opens a trainer closes it: fitting it in between stops nothing."""
    trainer, env, events = world(steps=1)
    with trainer:
        assert trainer.open(env).version == "run@0"
        trainer.fit(env)
        assert trainer.policy.version == "run@1"
        assert "stop" not in events
    assert events[-1] == "stop"
    with pytest.raises(TrainerError, match="serves no policy"):
        _ = trainer.policy


def test_a_resumed_run_goes_on_with_the_next_step(world, tmp_path):
    """The count of steps, the version and the checkpoint's number go on; no step is made twice."""
    trainer, env, _ = world(steps=2)
    trainer.fit(env)
    trainer, env, events = world(steps=3, resume_from=tmp_path / "2")
    trainer.fit(env)
    assert [event for event in events if "rollouts" in event or "checkpoint" in event] == [
        f"2 rollouts 3 of run@2 at {TRAINING}",
        "checkpoint 3",
    ]


def test_a_step_that_learned_nothing_keeps_the_version(world):
    """Nothing is published, and the step still counts and is kept."""
    trainer, env, events = world(steps=1)
    env.batch = GroupBatch([])
    assert trainer.fit(env).version == "run@0"
    assert not any(event.startswith("publish") for event in events)
    assert "checkpoint 1" in events


def test_calls_that_reach_nobody_stop_the_run(world):
    """A program with a client of its own trains nothing: the first step says so, and what to do."""
    trainer, env, events = world(reach=False)
    with pytest.raises(NoCompletions) as caught:
        trainer.fit(env)
    assert str(caught.value) == (
        "step 1 made 4 calls and none reached the policy endpoint; build the client inside the program, "
        'or map its model with models={"gpt-4o-mini": "policy"}.'
    )
    assert events[-1] == "stop"


def test_a_first_step_without_calls_is_no_mistake_yet(world):
    """Where nothing was called nothing can have gone astray; the first step with calls decides."""
    trainer, env, _ = world(steps=2, reach=False, calls=0)
    trainer.fit(env)
    trainer, env, _ = world(steps=4, reach=False, calls=0, resume_from=env.folder / "2")
    env.groups = lambda rollouts, grouping: setattr(env, "calls", 1) or env.batch
    with pytest.raises(NoCompletions, match="step 4 made 2 calls"):
        trainer.fit(env)


@pytest.mark.parametrize(
    ("moment", "kept"), [("rollouts", ["checkpoint 1"]), ("report", ["checkpoint 1", "checkpoint 2"])]
)
def test_an_interrupt_keeps_every_finished_step(world, moment, kept):
    """Ctrl-C in the second step's rollouts keeps the first; after its update it keeps the second too."""
    trainer, env, events = world(steps=3)
    original = getattr(env, moment)

    def interrupted(*args, **kwargs):
        if trainer.steps_done == (1 if moment == "rollouts" else 2):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    setattr(env, moment, interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(env)
    assert [event for event in events if event.startswith("checkpoint")] == kept
    assert events[-1] == "stop"


def test_an_interrupt_between_update_and_checkpoint_keeps_the_update(world):
    """A step whose weights are changed is a finished step, even if it could not be written down yet."""
    trainer, env, events = world(steps=3)

    def interrupted(*args, **kwargs):
        env.journal.batch = lambda *args, **kwargs: None
        raise KeyboardInterrupt

    env.journal.batch = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(env)
    assert events[-2:] == ["checkpoint 1", "stop"]


class OneWordEnvironment(RecordingEnvironment):
    """A world that asks a real endpoint for one word, and rewards late words of the vocabulary."""

    def __init__(self, trainer, folder, **settings) -> None:
        super().__init__(trainer, [], folder, **settings)
        self.completions = []
        self.journal.completion = self.completions.append

    def rollouts(self, examples, n, policy, split, *, step):
        self.completions.clear()
        with openai.OpenAI(base_url=policy.base_url, api_key=policy.api_key) as client:
            response = client.chat.completions.create(
                model=policy.model, messages=[{"role": "user", "content": "w1 w2"}], n=n, max_tokens=1
            )
        calls = [Call(choice.message.content or "", "r", "word") for choice in response.choices]
        return RolloutSet("run", split, step, examples, [Rollout("r", "q1", calls=calls)])

    def groups(self, rollouts, grouping):
        rewards = [completion.completion_token_ids[0] / 10 for completion in self.completions]
        mean = sum(rewards) / len(rewards)
        members = [
            member(
                completion.prompt_token_ids,
                completion.completion_token_ids,
                reward - mean,
                logprobs=completion.completion_logprobs,
                sampling=completion.sampling,
            )
            for completion, reward in zip(self.completions, rewards, strict=True)
        ]
        return GroupBatch([group(*members)])

    def evaluate(self, policy, examples=None, *, step):
        raise AssertionError("there is no validation set")

    def report(self, report, rollouts, batch):
        self.events.append((report.clip_fraction, report.skipped, report.used))


def test_the_local_trainer_learns_through_its_own_endpoint(make_trainer, tmp_path):
    """Sampled over HTTP by an ordinary client, what it records is on policy, and better words become likelier."""
    trainer = make_trainer(learning_rate=2e-3)
    env = OneWordEnvironment(trainer, tmp_path)
    env.plan = Plan("run", steps=4, examples_per_step=1, rollouts=24)
    with trainer:
        trainer.open(env)
        before = expected_token(trainer)
        assert trainer.fit(env).version == "run@4"
        after = expected_token(trainer)
        assert {completion.policy_version for completion in env.completions} == {"run@3"}
    assert (0.0, {}, 24) in env.events
    assert after > before + 5.0


def expected_token(trainer) -> float:
    """Which token the policy gives after the prompt, on average: the higher, the better rewarded."""
    prompt = trainer.tokenizer("<user> w1 w2 <assistant>", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        probabilities = trainer.model(input_ids=prompt).logits[0, -1].softmax(-1)
    return float(probabilities @ torch.arange(len(probabilities), dtype=torch.float32))
