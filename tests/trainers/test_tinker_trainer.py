"""A step at a Tinker service: what reaches it, what it learns of that, and what is left out."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from looped_program import ask
from tinker_service import KEY
from tiny_llama import EOS, WORDS, gradients, group, member, own_logprobs, tiny_batch, tiny_tokenizer

import tracetune as tt
from tracetune.errors import InvalidInput
from tracetune.trainers import make_trainer, trainer_names
from tracetune.trainers.tinker import TinkerSettings, TinkerTrainer
from tracetune.types import Example, GroupBatch, Plan, Rollout, Sampling


def sent_inputs(request, name: str) -> list[list[float]]:
    """A per-token input of every datum of a request, decoded from its bytes."""
    tensors = [datum.loss_fn_inputs[name] for datum in request.data]
    kinds = {"target_tokens": np.int64}
    return [np.frombuffer(tensor.dense, kinds.get(name, np.float32)).tolist() for tensor in tensors]


def trajectories(batch: GroupBatch) -> GroupBatch:
    """The same calls, the first two of each group being one rollout."""
    groups = [
        replace(one, members=[replace(m, trajectory=max(slot - 1, 0)) for slot, m in enumerate(one.members)])
        for one in batch.groups
    ]
    return GroupBatch(groups, unit="trajectory")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Two gradients agree to a share of the largest entry."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def test_the_registry_knows_it():
    """One word makes the trainer, and nothing is asked of a service yet."""
    assert "tinker" in trainer_names()
    assert make_trainer("tinker", model="Qwen/Qwen3-8B", kl=0.02).settings == TinkerSettings(kl=0.02)


@pytest.mark.parametrize(
    ("normalisation", "unit"),
    [("grpo", "call"), ("grpo", "trajectory"), ("bnpo", "call"), ("dr_grpo", "call"), ("dapo", "call")],
)
def test_a_step_there_is_a_step_here(service, make_tinker, make_trainer, model, tmp_path, normalisation, unit):
    """With tokens clipped, the service's loss and every gradient are those of the local trainer."""
    batch = tiny_batch(model, sizes=(5, 3, 4), shift=0.3)
    batch = batch if unit == "call" else trajectories(batch)
    lengths = {"max_completion_length": 7} if normalisation == "dr_grpo" else {}
    local = make_trainer(loss=normalisation, max_grad_norm=1e9, **lengths)
    expected, expected_gradients = gradients(local, batch, tmp_path)

    report = make_tinker(loss="ppo", normalisation=normalisation, **lengths).step(batch)

    assert_same(service.learner.gradients, expected_gradients)
    assert service.learner.losses == [pytest.approx(expected.loss, abs=1e-5)]
    assert report.loss == pytest.approx(expected.loss, abs=1e-5)
    assert report.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert 0.1 < report.clip_fraction == expected.clip_fraction
    assert (report.step, report.used, report.tokens, report.kl, report.skipped) == (
        1,
        expected.used,
        expected.tokens,
        None,
        {},
    )


@pytest.mark.parametrize("importance", [None, "token", "sequence"])
def test_what_others_sampled_weighs_there_as_it_does_here(
    service, make_tinker, make_trainer, model, tmp_path, importance
):
    """A teacher's tokens are weighed by their importance, its texts are imitated, and so are all under `importance`."""
    groups = list(tiny_batch(model, sizes=(4, 3), shift=0.8))
    known = [replace(groups[0].members[0], teacher="big"), *groups[0].members[1:]]
    text = {"messages": [{"role": "user", "content": "w1 w2"}], "text": "w3", "teacher": "text only", "reward": 9.0}
    batch = GroupBatch([group(*known, member(None, None, 0.5, **text)), groups[1]])
    settings = {"importance": importance, "importance_cap": 1.5, "distil": 0.7}
    expected, expected_gradients = gradients(make_trainer(max_grad_norm=1e9, **settings), batch, tmp_path)
    report = make_tinker(**settings).step(batch)
    assert_same(service.learner.gradients, expected_gradients)
    assert (report.used, report.tokens, report.skipped) == (8, expected.tokens, {})


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_where_nobody_knows_who_sampled_the_base_model_did(service, make_tinker, model, kl):
    """Later steps weigh members as if it had recorded their log-probabilities, and ask it for no others."""
    recorded = tiny_batch(model)
    first, second = recorded.groups
    unknown = GroupBatch([group(*(replace(one, logprobs=None) for one in first.members)), second])
    sent = []
    for batch in (recorded, unknown):
        trainer = make_tinker(importance="token", kl=kl, learning_rate=1e-2)
        trainer.step(recorded)
        asked = len(service.samples_asked())
        with warnings.catch_warnings(record=True) as warned:
            trainer.step(batch)
        request = [request for request in service.bodies("forward_backward") if not request.forward_only][-1]
        sent.append((sent_inputs(request, "advantages"), len(service.samples_asked()) - asked, len(warned)))
    (expected, _, _), (found, asked, warned) = sent
    assert found == [pytest.approx(advantages, abs=1e-5) for advantages in expected]
    sequences = [m for one in (unknown if kl else [first]) for m in one.members]
    assert asked == len({(*m.prompt_ids, *m.completion_ids) for m in sequences})
    assert warned == 1


def test_training_on_logs_weighs_them_by_default(service, tmp_path):
    """Made by its name for what is stored, it is told `importance` and the seed, as its checkpoint shows."""
    prompt = [{"role": "user", "content": "w1 w2"}]
    tt.Store(tmp_path / "logs.duckdb").add_rollouts(
        {"example_id": "q1", "reward": reward, "calls": [{"module": "say", "messages": prompt, "completion": text}]}
        for text, reward in (("w3", 1.0), ("w4 w5", 0.0))
    )
    with pytest.warns(UserWarning, match="those of the base model stand in"):
        result = tt.train(
            tmp_path / "logs.duckdb", "tinker", model=service.name, base_url=service.address, api_key=KEY,
            seed=3, held_out=0.0, progress=False,
        )  # fmt: skip
    settings = json.loads((result.checkpoint / "trainer.json").read_text())["settings"]
    assert (settings["importance"], settings["seed"], result.reports[0].used) == ("token", 3, 2)


@pytest.mark.parametrize("loss", ["importance_sampling", "ppo", "cispo"])
def test_each_loss_is_the_mean_over_tokens_members_and_groups(service, make_tinker, model, loss):
    """The sum that the service computes is mmGRPO's mean, written out here."""
    batch = tiny_batch(model, shift=0.3)
    report = make_tinker(loss=loss, clip=0.1, clip_high=0.3).step(batch)

    def gain(logprob: float, old: float, advantage: float) -> float:
        ratio = math.exp(logprob - old)
        clipped = min(max(ratio, 0.9), 1.3)
        if loss == "importance_sampling":
            return ratio * advantage
        return min(ratio * advantage, clipped * advantage) if loss == "ppo" else clipped * logprob * advantage

    means = []
    for one in batch:
        gains = []
        for m in one.members:
            present = own_logprobs(model, m.prompt_ids, m.completion_ids)
            gains.append(np.mean([gain(*pair, m.advantage) for pair in zip(present, m.logprobs, strict=True)]))
        means.append(np.mean(gains))
    assert service.learner.losses == [pytest.approx(-np.mean(means), abs=1e-5)]
    assert report.loss == pytest.approx(-np.mean(means), abs=1e-5)


def test_exact_tokens_reach_the_service(service, make_tinker):
    """Inputs and targets are the member's own tokens, shifted by one; its prompt has neither ratio nor advantage."""
    one = member([5, 6, 7], [8, 9, EOS], 2.0, logprobs=[-1.0, -2.0, -3.0])
    make_tinker().step(GroupBatch([group(one, member([5], [EOS], -2.0, logprobs=[-0.5]))]))
    (request,) = service.bodies("forward_backward")
    inputs = [np.frombuffer(datum.model_input[0].encoded_text.tokens, np.int32).tolist() for datum in request.data]
    assert inputs == [[5, 6, 7, 8, 9], [5]]
    assert sent_inputs(request, "target_tokens") == [[6, 7, 8, 9, EOS], [EOS]]
    assert sent_inputs(request, "logprobs") == [[0, 0, -1.0, -2.0, -3.0], [-0.5]]
    third = np.float32(2.0 / 3 / 2)
    assert sent_inputs(request, "advantages") == [[0, 0, third, third, third], [-1.0]]
    assert (request.loss_fn, {name: value.number for name, value in request.loss_fn_config_v2.items()}) == (
        "ppo",
        {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2},
    )


def test_the_penalty_is_a_reward_that_tokens_lose(service, make_tinker, model):
    """A token that was likelier when it was sampled than under the base model has a smaller advantage by β a nat."""
    batch = tiny_batch(model, shift=0.5)
    trainer = make_tinker(kl=0.1, learning_rate=1e-2)
    first = trainer.step(batch)
    (request,) = service.bodies("forward_backward")
    expected = []
    for one in batch:
        for m in one.members:
            base = own_logprobs(model, m.prompt_ids, m.completion_ids)
            weight = 1 / (len(m.completion_ids) * len(one.members) * len(batch))
            tokens = [weight * (m.advantage - 0.1 * (old - b)) for old, b in zip(m.logprobs, base, strict=True)]
            expected.append([0.0] * (len(m.prompt_ids) - 1) + tokens)
    for found, wanted in zip(sent_inputs(request, "advantages"), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    # The adapter has changed nothing yet when the first step reads its log-probabilities.
    assert first.kl == pytest.approx(0.0, abs=1e-6)
    assert trainer.step(batch).kl > 1e-4


def test_equal_sequences_are_asked_of_the_base_model_once(service, make_tinker):
    """Rollouts that say the same cost one request for its log-probabilities, not one each."""
    same = [member([5, 6], [7, EOS], advantage, logprobs=[-3.0, -3.0]) for advantage in (1.0, -0.5, -0.5)]
    make_tinker(kl=0.1).step(GroupBatch([group(*same)]))
    assert service.samples_asked() == [1]


def test_a_step_raises_the_probability_of_what_was_good(service, make_tinker, model):
    """After a few steps the completion with the advantage is likelier than it was, and the other less."""
    prompt, good, bad = [5, 6, 7], [8, 9, EOS], [10, EOS]
    batch = GroupBatch([group(member(prompt, good, 1.0), member(prompt, bad, -1.0))])
    trainer = make_tinker(learning_rate=1e-2)
    with pytest.warns(UserWarning, match="no log-probabilities"):
        reports = [trainer.step(batch) for _ in range(5)]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    after = service.learner.adapter.model
    assert sum(own_logprobs(after, prompt, good)) > sum(own_logprobs(model, prompt, good)) + 0.5
    assert sum(own_logprobs(after, prompt, bad)) < sum(own_logprobs(model, prompt, bad)) - 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"on_policy": False, "sampling": Sampling(temperature=0.0)},
        {"temperature": 0.5},
        {"logprobs": None},
    ],
    ids=["greedy", "another temperature", "none"],
)
def test_other_log_probabilities_are_replaced_by_present_ones(service, make_tinker, model, changes):
    """Those that are not the policy's own at temperature 1 are asked of the service, which is said once."""
    values = {"logprobs": [-9.0, -9.0], **changes}
    batch = GroupBatch([group(member([5, 6], [7, EOS], 1.0, **values), member([5, 6], [8, EOS], -1.0, **values))])
    trainer = make_tinker(learning_rate=1e-2)
    with pytest.warns(UserWarning, match="present weights stand in"):
        trainer.step(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = trainer.step(batch)
    assert report.clip_fraction == 0.0
    assert report.loss == pytest.approx(0.0, abs=1e-6)
    first = next(request for request in service.bodies("forward_backward") if not request.forward_only)
    assert sent_inputs(first, "logprobs")[0][1:] == pytest.approx(own_logprobs(model, [5, 6], [7, EOS]), abs=1e-5)


def test_text_alone_is_tokenised_by_the_model_s_template(service, make_tinker):
    """A member of which the text alone is known is learned from; one that no template takes is left out."""
    text = {"messages": [{"role": "user", "content": "w1 w2"}], "text": "w3"}
    tool = {"messages": [{"role": "tool", "content": "w1"}], "text": "w3"}
    batch = GroupBatch([group(member(None, None, 1.0, **text), member(None, None, -1.0, **tool))])
    with pytest.warns(UserWarning, match="text alone"):
        report = make_tinker().step(batch)
    assert (report.used, report.skipped) == (1, {"no_tokens": 1})
    request = service.bodies("forward_backward")[-1]
    assert sent_inputs(request, "target_tokens") == [[6, 7, 3, 8, EOS]]


def test_members_that_cannot_be_learned_from_are_counted_by_reason(make_tinker):
    """Each is left out with its reason, and the rest is learned as if they had not been there."""
    fine = member([5], [6, EOS], 1.0, logprobs=[-3.0, -3.0])
    others = [
        member([5], [99], 1.0, logprobs=[-1.0]),
        member([], [6], 1.0, logprobs=[-1.0]),
        member([5], [], 1.0, logprobs=[]),
        member([5] * 30, [6], 1.0, logprobs=[-1.0]),
        member([5], [6], math.nan, logprobs=[-1.0]),
    ]
    report = make_tinker(context_length=20).step(GroupBatch([group(fine, *others)]))
    assert report.skipped == {
        "unknown_token": 1,
        "empty_prompt": 1,
        "empty_completion": 1,
        "too_long": 1,
        "no_advantage": 1,
    }
    assert report.used == 1


@pytest.mark.parametrize("groups", [[], [group(member([5], [6, EOS], 0.0, logprobs=[-1.0, -1.0]))]], ids=["empty", "0"])
def test_where_nothing_can_be_learned_nothing_is_trained(service, make_tinker, groups):
    """An empty batch, or one without advantages, is a step that changes no weight."""
    report = make_tinker().step(GroupBatch(groups))
    skipped = {"nothing_to_learn": 1} if groups else {}
    assert (report.step, report.used, report.tokens, report.loss, report.skipped) == (1, 0, 0, 0.0, skipped)
    assert service.bodies("forward_backward") == service.bodies("optim_step") == []


def test_the_update_is_the_local_trainer_s(service, make_tinker, model):
    """AdamW has PyTorch's constants, the gradient's limit ours, and the rate what the schedule says for the step."""
    trainer = make_tinker(learning_rate=0.01, schedule="linear", warmup_steps=1, total_steps=3, max_grad_norm=0.5)
    for _ in range(3):
        trainer.step(tiny_batch(model))
    params = [body["adam_params"] for body in service.bodies("optim_step")]
    assert [values.pop("learning_rate") for values in params] == pytest.approx([0.01, 0.01, 0.005])
    constants = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 0.5}
    assert params == [constants] * 3
    created = service.bodies("create_model")[0]
    assert (created["base_model"], created["lora_config"]["rank"], created["lora_config"]["seed"]) == (
        service.name,
        16,
        0,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "dro"}, "the tinker trainer's loss is 'dro'; Input should be 'importance_sampling', 'ppo' or"),
        ({"lr": 1}, "the tinker trainer has no setting 'lr'; it has loss, normalisation,"),
        (
            {"normalisation": "dr_grpo"},
            "the normalisation dr_grpo divides by max_completion_length; give it, in tokens",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    """The message says which, and what there is."""
    with pytest.raises(InvalidInput) as caught:
        TinkerTrainer("model", **settings)
    assert str(caught.value).startswith(message)


def test_a_plan_that_samples_at_another_temperature_is_refused():
    """The service's losses are those of the distribution at temperature 1."""
    plan = Plan("run", steps=1, examples_per_step=1, rollouts=2, sampling=Sampling(temperature=0.7))
    with pytest.raises(InvalidInput, match=r"learns at temperature 1, and the plan samples at 0\.7"):
        TinkerTrainer("model").prepare(plan)


def test_a_schedule_needs_to_know_its_end():
    """It falls over the plan's steps, or over those that it was given; a step of its own has neither."""
    with pytest.raises(InvalidInput, match="falls over total_steps"):
        TinkerTrainer("model", schedule="cosine").step(GroupBatch([]))
    trainer = TinkerTrainer("model", schedule="cosine")
    trainer.prepare(Plan("run", steps=7, examples_per_step=1, rollouts=2))
    assert trainer.settings.total_steps == 7


@tt.program
def say(word: str) -> str:
    """One word of the policy."""
    return ask(word)


def late_word(example: Example, output: str, rollout: Rollout) -> float:
    """More for words that stand later in the vocabulary."""
    return WORDS.index(output) / len(WORDS) if output in WORDS else 0.0


def expected_reward(model) -> float:
    """What the policy earns on average after the prompt."""
    prompt = tiny_tokenizer()("<user> w1 <assistant>", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        probabilities = model(input_ids=prompt).logits[0, -1].softmax(-1)
    return float(probabilities @ torch.arange(len(WORDS), dtype=torch.float32)) / len(WORDS)


def test_a_program_earns_more_after_a_run(service, make_tinker, tmp_path):
    """Sampled through the endpoint, grouped by the store, trained at the service: all on policy, and it pays."""
    result = tt.optimize(
        say,
        [Example("q1", {"word": "w1"})],
        late_word,
        make_tinker(learning_rate=1e-2),
        store=tmp_path / "traces.duckdb",
        sampling=Sampling(temperature=1.0, top_p=1.0, max_tokens=1),
        steps=4,
        examples_per_step=1,
        rollouts=16,
        progress=False,
    )
    assert expected_reward(service.learner.adapter.model) > expected_reward(service.base) + 0.05
    calls = tt.Store(tmp_path / "traces.duckdb").sql(
        "SELECT step, policy_version, exact, on_policy, count(*) FROM calls GROUP BY ALL ORDER BY step"
    )
    # Where all answers of a step are worth the same, it teaches nothing, and the version stays.
    learned = [0, *(report.step if report.used else 0 for report in result.reports)]
    assert [tuple(row.values()) for row in calls.rows()] == [
        (step, f"{result.run}@{max(learned[:step])}", True, True, 16) for step in range(1, 5)
    ]
    assert [report.clip_fraction for report in result.reports] == [0.0] * 4
