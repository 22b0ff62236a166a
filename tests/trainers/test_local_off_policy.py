"""What the local trainer makes of completions that another policy sampled: older weights, or a teacher."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from tiny_llama import EOS, gradients, group, member, own_logprobs, perturb, tiny_batch, tiny_model

from tracetune.types import GroupBatch, Sampling

PROMPT, MESSAGES = "<user> w1 w2 <assistant>", [{"role": "user", "content": "w1 w2"}]
FREE = {"max_grad_norm": 1e9}


def assert_same_gradients(left, right):
    """Two (report, gradients) agree to a share of the largest gradient."""
    assert left[0].loss == pytest.approx(right[0].loss, abs=3e-6)
    largest = max(float(gradient.abs().max()) for gradient in left[1].values())
    assert largest > 0.0
    for name, gradient in left[1].items():
        torch.testing.assert_close(right[1][name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=name)


def text_of_teacher(text: str, reward: float, advantage: float, **changes):
    """A teacher's member of which only the text is known."""
    return member(None, None, advantage, messages=MESSAGES, text=text, reward=reward, teacher="large", **changes)


def test_on_its_own_policy_the_correction_is_one(make_trainer, model, tmp_path):
    """Fresh rollouts have the same loss and gradients with the correction and without."""
    batch = tiny_batch(model)
    plain = gradients(make_trainer(**FREE), batch, tmp_path / "plain")
    for level in ("token", "sequence"):
        corrected = gradients(make_trainer(importance=level, **FREE), batch, tmp_path / level)
        assert_same_gradients(plain, corrected)


def test_stale_members_are_held_against_what_was_recorded_by_default(make_trainer, model, tmp_path):
    """Weights that moved away from those that sampled meet the clip; under correction the clip starts anew."""
    batch = tiny_batch(model)
    reports = []
    for settings in ({}, {"importance": "token"}):
        trainer = make_trainer(**settings)
        perturb(trainer.model, 0.03)
        reports.append(trainer.step(batch))
    assert reports[0].clip_fraction > 0.1
    assert reports[1].clip_fraction == 0.0


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_where_nobody_knows_who_sampled_the_model_without_its_adapter_did(make_trainer, model, tmp_path, level, kl):
    """Without log-probabilities, all members or some, they learn as with those of the weights that it began with."""
    batch = tiny_batch(model)
    unknown = [group(*(replace(one, logprobs=None) for one in each.members)) for each in batch]

    def learned(groups, name):
        trainer = make_trainer(importance=level, kl=kl, **FREE)
        perturb(trainer.model, 0.02)
        return gradients(trainer, GroupBatch(groups), tmp_path / name)

    expected = learned(batch, "recorded")
    for name, groups in {"all": unknown, "some": [unknown[0], batch.groups[1]]}.items():
        with pytest.warns(UserWarning, match="those of the model without its adapter stand in"):
            found = learned(groups, name)
        assert_same_gradients(expected, found)


@pytest.mark.parametrize("level", [None, "token", "sequence"])
def test_a_teachers_members_are_always_corrected(make_trainer, model, tmp_path, level):
    """Beside members of the policy, a teacher's weigh what is likelier here than there, up to the cap."""
    prompt, good, bad = [5, 6, 7], [8, 9, EOS], [10, EOS]
    own = own_logprobs(model, prompt, bad)
    first = own_logprobs(model, prompt, good)
    distances = [0.4, -0.6, 2.0]
    recorded = [logprob - distance for logprob, distance in zip(first, distances, strict=True)]
    taught = member(prompt, good, 1.0, logprobs=recorded, teacher="large")
    batch = GroupBatch([group(taught, member(prompt, bad, -1.0, logprobs=own))])
    report = make_trainer(importance=level, importance_cap=2.0, **FREE).step(batch)
    by_token = torch.tensor(distances).exp().clamp(max=2.0).tolist()
    weights = [2.0] * 3 if level == "sequence" else by_token
    assert report.loss == pytest.approx(-(sum(weights) / 3 - 1.0) / 2, abs=1e-5)
    assert (report.used, report.clip_fraction) == (2, 0.0)


def test_corrected_members_keep_their_weights_through_later_epochs(make_trainer, model):
    """Importance is of the step's first weights: it is 1 for fresh rollouts in every epoch, and ratios move."""
    batch = tiny_batch(model)
    plain = make_trainer(learning_rate=0.02, epochs=3)
    corrected = make_trainer(learning_rate=0.02, epochs=3, importance="token")
    left, right = plain.step(batch), corrected.step(batch)
    assert left.clip_fraction > 0.0
    assert right.loss == pytest.approx(left.loss, rel=1e-4)


@pytest.mark.parametrize("distil", [1.0, 0.25])
def test_a_teachers_good_texts_are_imitated(make_trainer, model, tokenizer, tmp_path, distil):
    """Better than its group: its mean negative log-likelihood, times `distil`; its advantage does not matter."""
    prompt = tokenizer(PROMPT)["input_ids"]
    completion = [*tokenizer("w3 w4")["input_ids"], EOS]
    own = member(prompt, [9, EOS], -1.0, logprobs=own_logprobs(model, prompt, [9, EOS]))
    taught = text_of_teacher("w3 w4", 1.0, 0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = make_trainer(distil=distil, **FREE).step(GroupBatch([group(taught, own)]))
    likelihood = sum(own_logprobs(model, prompt, completion)) / 3
    assert report.loss == pytest.approx(-(distil * likelihood - 1.0) / 2, abs=1e-5)
    assert (report.used, report.tokens, report.skipped) == (2, 5, {})


def test_imitation_raises_the_likelihood_of_the_teachers_best(make_trainer, model, tokenizer):
    """Steps on the texts alone make the rewarded one likelier, without any group advantage."""
    prompt = tokenizer(PROMPT)["input_ids"]
    good = [*tokenizer("w3 w4")["input_ids"], EOS]
    batch = GroupBatch([group(text_of_teacher("w3 w4", 1.0, 0.0), text_of_teacher("w5", 0.0, 0.0))])
    trainer = make_trainer(learning_rate=1e-2)
    for _ in range(5):
        assert trainer.step(batch).skipped == {"not_imitated": 1}
    assert sum(own_logprobs(trainer.model, prompt, good)) > sum(own_logprobs(model, prompt, good)) + 1.0


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"reward": -1.0}, {}),  # below the group's mean
        ({"reward": 0.0}, {}),  # at it
        ({"reward": 9.0}, {"distil": 0.0}),  # above it, and not asked for
    ],
)
def test_what_a_teacher_did_no_better_is_left_out(make_trainer, model, tmp_path, changes, settings):
    """It is counted, and the rest learns as if it had not been there."""
    batch = tiny_batch(model)
    zero = [replace(one, reward=0.0) for one in batch.groups[0].members]
    taught = replace(text_of_teacher("w3 w4", 0.0, 2.0), **changes)
    with_teacher = GroupBatch([group(*zero, taught), batch.groups[1]])
    if changes["reward"] == -1.0:
        assert taught.reward < sum(one.reward for one in with_teacher.groups[0].members) / 5
    expected = gradients(make_trainer(**FREE), batch, tmp_path / "expected")
    found = gradients(make_trainer(**FREE, **settings), with_teacher, tmp_path / "found")
    assert found[0].skipped == {"not_imitated": 1}
    assert_same_gradients(expected, found)


@pytest.mark.parametrize(
    "changes",
    [
        {"logprobs": None},
        {"on_policy": False, "sampling": Sampling(temperature=0.0)},
        {"logprobs": [-1.0, float("nan"), -1.0]},
    ],
)
def test_exact_tokens_without_usable_log_probabilities_are_imitated(make_trainer, model, tokenizer, changes):
    """A greedy teacher's tokens cannot be weighed; they are imitated token by token."""
    prompt = tokenizer(PROMPT)["input_ids"]
    completion = [*tokenizer("w3 w4")["input_ids"], EOS]
    taught = replace(
        member(prompt, completion, 1.0, logprobs=[-1.0] * 3, teacher="large", text="w3 w4", reward=1.0), **changes
    )
    own = member(prompt, [9, EOS], -1.0, logprobs=own_logprobs(model, prompt, [9, EOS]))
    report = make_trainer(**FREE).step(GroupBatch([group(taught, own)]))
    assert report.loss == pytest.approx(-(sum(own_logprobs(model, prompt, completion)) / 3 - 1.0) / 2, abs=1e-5)


def test_a_teacher_of_another_vocabulary_is_known_by_its_text(make_trainer, model, tokenizer, tmp_path):
    """Its tokens, which would read as something else here, and their log-probabilities are not used; its text is."""
    prompt = tokenizer(PROMPT)["input_ids"]
    own = member(prompt, [9, EOS], -1.0, logprobs=own_logprobs(model, prompt, [9, EOS]))
    text = text_of_teacher("w3 w4", 1.0, 1.0)
    foreign = replace(text, prompt_ids=[20, 21], completion_ids=[30, 31, 32], logprobs=[-0.1, -0.1, -0.1])
    expected = gradients(make_trainer(**FREE), GroupBatch([group(text, own)]), tmp_path / "text")
    found = gradients(make_trainer(**FREE), GroupBatch([group(foreign, own)]), tmp_path / "foreign")
    assert_same_gradients(expected, found)


def test_tokens_outside_the_vocabulary_are_known_by_their_text(make_trainer, model, tokenizer):
    """A teacher of a larger vocabulary is imitated, not an error, and not left out."""
    foreign = replace(
        text_of_teacher("w3 w4", 1.0, 1.0), prompt_ids=[20], completion_ids=[10**6, 2**70], logprobs=[-0.1, -0.1]
    )
    report = make_trainer().step(GroupBatch([group(foreign, text_of_teacher("w5", 0.0, -1.0))]))
    assert (report.used, report.tokens, report.skipped) == (1, 3, {"not_imitated": 1})


def test_groups_are_shared_among_teachers_and_policy(make_trainer, tmp_path):
    """Members of a teacher and of the policy stand in one prefix tree, or in rows of their own, all the same."""
    batch = tiny_batch(tiny_model(), sizes=(6,), shift=0.5)
    members = [
        replace(one, teacher="large" if slot % 2 else None, logprobs=None if slot == 3 else one.logprobs, reward=slot)
        for slot, one in enumerate(batch.groups[0].members)
    ]
    results = [
        gradients(make_trainer(token_budget=budget, kl=0.1, loss=loss, **FREE), GroupBatch([group(*members)]), folder)
        for loss in ("grpo", "gspo")
        for budget, folder in ((4096, tmp_path / f"{loss}-tree"), (1, tmp_path / f"{loss}-rows"))
    ]
    assert_same_gradients(results[0], results[1])
    assert_same_gradients(results[2], results[3])


def test_calls_of_tools_are_not_learned_from_their_text_alone(make_trainer, model, tokenizer):
    """What stands beside a call is not all of it: without tokens of this vocabulary it is left out."""
    calls = [{"id": "1", "type": "function", "function": {"name": "w4", "arguments": "{}"}}]
    prompt, completion = tokenizer(PROMPT)["input_ids"], [*tokenizer("w3 w4")["input_ids"], EOS]
    text = replace(text_of_teacher("w3", 1.0, 1.0), tool_calls=calls)
    exact = replace(text, prompt_ids=prompt, completion_ids=completion, logprobs=[-1.0] * 3)
    foreign = replace(exact, completion_ids=[*tokenizer("w3 w5")["input_ids"], EOS])
    report = make_trainer().step(GroupBatch([group(text, foreign, exact)]))
    assert (report.used, report.tokens, report.skipped) == (1, 3, {"no_tokens": 2})
