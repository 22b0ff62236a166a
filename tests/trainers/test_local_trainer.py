"""What a step of the local trainer does, and what it leaves alone."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_llama import EOS, gradients, group, member, own_logprobs, perturb, tiny_batch, tiny_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from tracetune.errors import InvalidInput
from tracetune.trainers.local import LocalTrainer
from tracetune.trainers.local.loss import LOSSES
from tracetune.trainers.local.rows import Cost
from tracetune.trainers.local.sharing import cost_of
from tracetune.types import GroupBatch, Sampling

FREE = {"max_grad_norm": 1e9}


def weights_of(trainer) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_same_gradients(left, right, tolerance=1e-5):
    """Two (report, gradients) agree to a share of the largest gradient."""
    assert left[0].loss == pytest.approx(right[0].loss, abs=3e-6)
    largest = max(float(gradient.abs().max()) for gradient in left[1].values())
    for name, gradient in left[1].items():
        torch.testing.assert_close(right[1][name], gradient, rtol=1e-4, atol=tolerance * largest, msg=name)


def test_a_step_raises_the_probability_of_what_was_good(make_trainer, model):
    """After a few steps on the same two completions, the one with the advantage is likelier, the other less."""
    prompt = [5, 6, 7]
    good, bad = [8, 9, EOS], [10, EOS]
    batch = GroupBatch([group(member(prompt, good, 1.0), member(prompt, bad, -1.0))])
    trainer = make_trainer(learning_rate=1e-2)
    with pytest.warns(UserWarning, match="no log-probabilities"):
        reports = [trainer.step(batch) for _ in range(5)]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5]
    assert sum(own_logprobs(trainer.model, prompt, good)) > sum(own_logprobs(model, prompt, good))
    assert sum(own_logprobs(trainer.model, prompt, bad)) < sum(own_logprobs(model, prompt, bad))


def test_a_first_step_on_fresh_rollouts_has_ratio_one(make_trainer, model):
    """Nothing is clipped, the loss is minus the mean advantage, and the penalty is 0."""
    batch = tiny_batch(model)
    report = make_trainer(kl=0.1).step(batch)
    means = [sum(member.advantage for member in group.members) / len(group.members) for group in batch]
    assert report.loss == pytest.approx(-sum(means) / len(means), abs=1e-5)
    assert report.kl == pytest.approx(0.0, abs=1e-6)
    assert report.clip_fraction == 0.0
    assert report.used == batch.n_members
    assert report.tokens == sum(len(member.completion_ids) for group in batch for member in group.members)
    assert 0.0 < report.entropy <= math.log(40)
    assert report.skipped == {}
    assert report.seconds > 0.0


def test_the_same_seed_and_batches_give_the_same_weights(make_trainer, model):
    """Two trainers with one seed agree to the bit; another seed does not."""
    batches = [tiny_batch(model, seed=seed, shift=0.3) for seed in range(3)]
    trained = []
    for seed in (1, 1, 2):
        trainer = make_trainer(seed=seed, kl=0.1, epochs=2)
        for batch in batches:
            trainer.step(batch)
        trained.append(weights_of(trainer))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert not all(torch.equal(trained[0][name], trained[2][name]) for name in trained[0])


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_and_budget_change_nothing(make_trainer, tmp_path_factory, data):
    """The order of groups and members, and how much goes into one forward, change no gradient beyond rounding."""
    batch = tiny_batch(tiny_model(), seed=data.draw(st.integers(0, 100)), sizes=(4, 3, 2), shift=0.5)
    shuffled = GroupBatch(
        [
            replace(group, members=data.draw(st.permutations(list(group.members))))
            for group in data.draw(st.permutations(list(batch.groups)))
        ]
    )
    loss = data.draw(st.sampled_from(["grpo", "bnpo", "dapo", "gspo", "cispo"]))
    expected = gradients(make_trainer(loss=loss, kl=0.05, **FREE), batch, tmp_path_factory.mktemp("plain"))
    budget = data.draw(st.integers(1, 60))
    other = make_trainer(loss=loss, kl=0.05, token_budget=budget, **FREE)
    assert_same_gradients(expected, gradients(other, shuffled, tmp_path_factory.mktemp("other")))


def qwen3() -> Qwen3ForCausalLM:
    """Another architecture with grouped-query attention: heads wider than their share, normalised queries and keys."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = tiny_model().config.to_dict() | {"head_dim": 16, "model_type": "qwen3", "architectures": None}
        return Qwen3ForCausalLM(Qwen3Config(**shape)).eval()


@pytest.mark.parametrize("architecture", [tiny_model, qwen3])
@pytest.mark.parametrize("loss", LOSSES)
def test_sharing_changes_no_gradient(tokenizer, tmp_path, loss, architecture):
    """One tree for all, and a row for each member, have the same gradients under clipping, penalty and correction."""
    batch = tiny_batch(architecture(), sizes=(6, 5), longest=4, shift=0.5)
    taught = [replace(one, teacher="large") for one in batch.groups[0].members[:3]]
    batch = GroupBatch([replace(batch.groups[0], members=[*taught, *batch.groups[0].members[3:]]), batch.groups[1]])
    results = []
    for name, budget, forwards in (("tree", 4096, 1), ("rows", 1, 11)):
        trainer = LocalTrainer(
            (architecture(), tokenizer),
            threads=1,
            kl=0.1,
            token_budget=budget,
            loss=loss,
            clip=0.1,
            max_completion_length=8,
            **FREE,
        )
        perturb(trainer.model, 0.02)
        seen = []
        trainer.model.get_base_model().register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        results.append(gradients(trainer, batch, tmp_path / name))
        assert len(seen) == 2 * forwards
    assert results[0][0].clip_fraction > 0.1
    assert_same_gradients(*results)


def test_members_of_a_trajectory_are_one_unit(make_trainer, model, tmp_path):
    """Two calls of one rollout weigh as much as one call of another: their tokens are averaged together (Eq. 9)."""
    prompt = [5, 6, 7]
    tokens = ([8, 9, 10, EOS], [8, EOS], [10, 9, EOS])
    logprobs = [own_logprobs(model, prompt, completion) for completion in tokens]
    members = [
        member(prompt, completion, advantage, logprobs=values, trajectory=trajectory)
        for completion, values, advantage, trajectory in zip(tokens, logprobs, (2.0, 2.0, -1.0), (0, 0, 1), strict=True)
    ]
    trainer = make_trainer(**FREE)
    report = trainer.step(GroupBatch([group(*members)], unit="trajectory"))
    # By calls it would be -(2 + 2 - 1) / 3.
    assert report.loss == pytest.approx(-(2.0 - 1.0) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"completion_ids": []}, "empty_completion"),
        ({"prompt_ids": []}, "empty_prompt"),
        ({"prompt_ids": None}, "no_tokens"),
        ({"prompt_ids": None, "is_redacted": True}, "redacted"),
        ({"prompt_ids": None, "messages": [{"role": "tool", "content": "w1"}]}, "no_tokens"),
        ({"completion_ids": [8, 40]}, "unknown_token"),
        ({"prompt_ids": [5] * 128}, "too_long"),
        ({"advantage": float("nan")}, "no_advantage"),
    ],
)
def test_what_cannot_be_learned_is_left_out_with_its_reason(make_trainer, model, tmp_path, changes, reason):
    """A member that is of no use is counted by reason, and the rest learns as if it had not been there."""
    batch = tiny_batch(model)
    bad = replace(batch.groups[0].members[0], **{"completion_ids": [8, EOS], "logprobs": None, **changes})
    spoilt = GroupBatch([group(*batch.groups[0].members, bad), *batch.groups[1:]])
    expected = gradients(make_trainer(), batch, tmp_path / "expected")
    found = gradients(make_trainer(), spoilt, tmp_path / "found")
    assert found[0].skipped == {reason: 1}
    assert found[0].used == batch.n_members
    assert_same_gradients(expected, found)


@pytest.mark.parametrize("advantage", [None, 0.0])
def test_nothing_to_learn_changes_no_weight(make_trainer, model, advantage):
    """An empty batch, or one without any advantage, is reported and leaves every bit as it was."""
    trainer = make_trainer()
    trainer.step(tiny_batch(model))
    before = weights_of(trainer)
    members = [] if advantage is None else [member([5, 6], [8, EOS], advantage, logprobs=[-1.0, -1.0])] * 2
    report = trainer.step(GroupBatch([group(*members)] if members else []))
    assert (report.step, report.used, report.tokens, report.grad_norm) == (2, 0, 0, 0.0)
    assert report.skipped == ({"nothing_to_learn": 2} if members else {})
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(trainer).items())


def test_a_gradient_that_is_not_finite_changes_no_weight(make_trainer, model):
    """A ratio that overflows is reported and leaves weights and optimiser as they were, ready for the next step."""
    trainer, untouched = make_trainer(), make_trainer()
    batch = tiny_batch(model)
    # Such a token had no probability at all when it was sampled: the ratio overflows.
    impossible = replace(batch.groups[0].members[0], logprobs=[-1e30] * 99, advantage=-1.0)
    impossible = replace(impossible, logprobs=impossible.logprobs[: len(impossible.completion_ids)])
    report = trainer.step(GroupBatch([group(impossible, *batch.groups[0].members)]))
    assert (report.used, report.skipped) == (0, {"not_finite": 1 + len(batch.groups[0].members)})
    untouched.step(GroupBatch([]))
    assert trainer.step(batch).loss == untouched.step(batch).loss
    other = weights_of(untouched)
    assert all(torch.equal(other[name], weight) for name, weight in weights_of(trainer).items())


def test_greedy_members_are_learned_from_with_recomputed_logprobs(make_trainer, model, tmp_path):
    """Members off the policy's own distribution get the present weights' log-probabilities, and one warning."""
    batch = tiny_batch(model)
    greedy = GroupBatch(
        [
            group(
                *(
                    replace(
                        one, sampling=Sampling(temperature=0.0), logprobs=[0.0] * len(one.logprobs), on_policy=False
                    )
                    for one in each.members
                )
            )
            for each in batch
        ]
    )
    trainer = make_trainer()
    with pytest.warns(UserWarning, match="no log-probabilities"):
        found = gradients(trainer, greedy, tmp_path / "found")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.step(greedy)
    assert_same_gradients(gradients(make_trainer(), batch, tmp_path / "expected"), found)


def test_text_is_tokenised_by_the_chat_template(make_trainer, model, tokenizer, tmp_path):
    """A member with messages and text alone is learned from as if its tokens had been recorded."""
    messages = [{"role": "user", "content": "w1 w2"}]
    prompt_ids = tokenizer("<user> w1 w2 <assistant>")["input_ids"]
    completion_ids = [*tokenizer("w3 w4")["input_ids"], EOS]
    exact, text = (
        GroupBatch([group(one, member(prompt_ids, [9, EOS], -1.0, logprobs=own_logprobs(model, prompt_ids, [9, EOS])))])
        for one in (
            member(prompt_ids, completion_ids, 1.0, logprobs=own_logprobs(model, prompt_ids, completion_ids)),
            member(None, None, 1.0, messages=messages, text="w3 w4"),
        )
    )
    expected = gradients(make_trainer(), exact, tmp_path / "exact")
    with pytest.warns(UserWarning, match="no log-probabilities"):
        found = gradients(make_trainer(), text, tmp_path / "text")
    assert_same_gradients(expected, found)


def test_later_epochs_clip_against_where_the_step_began(make_trainer, model):
    """Several updates in a step move the ratio away from 1, and far enough from it tokens are clipped."""
    batch = tiny_batch(model)
    once = make_trainer(learning_rate=0.02).step(batch)
    often = make_trainer(learning_rate=0.02, epochs=4).step(batch)
    assert once.clip_fraction == 0.0
    assert often.clip_fraction > 0.0


def test_the_schedule_sets_the_rate(make_trainer, model):
    """With a linear fall over two steps, the second moves weights by about half as much."""
    batch = tiny_batch(model)
    steady, falling = make_trainer(), make_trainer(schedule="linear", total_steps=2)
    moved = []
    for trainer in (steady, falling):
        trainer.step(batch)
        before = weights_of(trainer)
        trainer.step(batch)
        after = weights_of(trainer)
        moved.append(sum(float((after[name] - before[name]).abs().sum()) for name in before))
    assert moved[1] == pytest.approx(moved[0] / 2, rel=1e-3)


def test_only_the_adapter_learns(make_trainer, model):
    """The model beneath stays as it was, the output layer has no adapter, and every linear layer has one."""
    trainer = make_trainer(learning_rate=1e-2)
    before = weights_of(trainer)
    trainer.step(tiny_batch(model))
    moved = {name for name, weight in weights_of(trainer).items() if not torch.equal(weight, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in before if ".lora_" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 1e-3}, "has no setting 'lerning_rate'; it has learning_rate, "),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"loss": "ppo"}, "loss is 'ppo'"),
        ({"loss": "dr_grpo"}, "give it, in tokens"),
    ],
)
def test_bad_settings_are_refused_at_once(make_trainer, settings, message):
    """A setting that is unknown or cannot be used is named, with what could stand there."""
    with pytest.raises(InvalidInput, match=message.replace(".", r"\.")):
        make_trainer(**settings)


def test_a_falling_schedule_needs_to_know_how_far(make_trainer, model):
    """Without a plan or a total, a step under a falling schedule says what is missing."""
    with pytest.raises(InvalidInput, match="total_steps"):
        make_trainer(schedule="cosine").step(tiny_batch(model))


def rows_run(trainer, batch) -> int:
    """How many rows a step puts through the model."""
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert trainer.step(batch).used == batch.n_members
    return sum(seen)


@pytest.mark.parametrize(("dropout", "rows"), [(0.0, 2), (0.5, 7)])
def test_dropout_turns_sharing_off(make_trainer, model, dropout, rows):
    """With dropout, members that share tokens would share their noise, so each has a row of its own."""
    assert rows_run(make_trainer(lora_dropout=dropout), tiny_batch(model)) == rows


def test_attention_that_takes_no_mask_of_ours_gets_plain_rows(tokenizer, model):
    """Under another attention implementation every member has a row of its own, and learns all the same."""
    trainer = LocalTrainer((tiny_model(attn_implementation="eager"), tokenizer), threads=1)
    assert rows_run(trainer, tiny_batch(model)) == 7


@pytest.mark.parametrize("tied", [True, False])
def test_the_cost_of_a_token_counts_its_linear_layers(tied):
    """Embeddings and output layer are left out once each, tied or not."""
    layers = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 48 * 3)
    norms = 5 * 32
    assert cost_of(tiny_model(tie_word_embeddings=tied)) == Cost(token=layers + norms, pair=2 * 32 * 2)


def test_a_model_with_an_adapter_is_refused(model, tokenizer):
    """A second trainer of the same model would put an adapter on an adapter."""
    LocalTrainer((model, tokenizer), threads=1)
    with pytest.raises(InvalidInput, match="has an adapter already"):
        LocalTrainer((model, tokenizer), threads=1)


def test_weights_in_half_precision_learn(tokenizer):
    """With bfloat16 beneath, the adapter and its gradients are float32, and prefixes are still shared."""
    trainer = LocalTrainer((tiny_model().to(torch.bfloat16), tokenizer), threads=1, learning_rate=1e-2)
    report = trainer.step(tiny_batch(tiny_model(), shift=0.1))
    assert report.used == 7
    assert math.isfinite(report.grad_norm)
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
