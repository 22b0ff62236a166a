"""DPO, KTO and SFT on groups: what each says of the completions, and which way it moves them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_llama import EOS, WORDS, group, member, own_logprobs, perturb, tiny_model, tiny_tokenizer

from tracetune.errors import CheckpointError, InvalidInput
from tracetune.trainers.trl import TrlTrainer
from tracetune.types import GroupBatch, Member

PROMPT, GOOD, BAD, MIDDLING = [2, 9, 3], [7, 8, EOS], [6, EOS], [5, 5, EOS]


def make(method: str, **settings: Any) -> TrlTrainer:
    """A trainer of the tiny model by one method."""
    return TrlTrainer((tiny_model(), tiny_tokenizer()), device="cpu", threads=1, method=method, **settings)


def said(completion_ids: list[int], reward: float, advantage: float, word: str = "w4") -> Member:
    """A completion of the prompt as the endpoint recorded it."""
    text = " ".join(WORDS[token] for token in completion_ids[:-1])
    messages = ({"role": "user", "content": word},)
    prompt_ids = [2, WORDS.index(word), 3]
    return member(prompt_ids, completion_ids, advantage, reward=reward, text=text, messages=messages)


def judged_batch() -> GroupBatch:
    """A good, a bad and a middling completion of one prompt, and another prompt with two."""
    first = group(said(GOOD, 1.0, 1.0), said(BAD, 0.0, -1.0), said(MIDDLING, 0.5, 0.0))
    return GroupBatch([first, group(said(BAD, 1.0, 0.7, "w7"), said(GOOD, 0.0, -0.7, "w7"))])


def logprob(trainer: TrlTrainer, completion_ids: list[int], word: str = "w4") -> float:
    """What the policy says of a whole completion."""
    return math.fsum(own_logprobs(trainer.model, [2, WORDS.index(word), 3], completion_ids))


def test_dpo_has_the_loss_of_its_paper():
    """A step's loss is the mean of -log sigmoid(beta (m - m_ref)) over its pairs, m = log p(better) - log p(worse)."""
    trainer = make("dpo", beta=0.3, token_budget=16)
    perturb(trainer.model, 0.05)
    pairs = [(GOOD, BAD, "w4"), (BAD, GOOD, "w7")]

    def margins() -> list[float]:
        return [logprob(trainer, better, word) - logprob(trainer, worse, word) for better, worse, word in pairs]

    policy = margins()
    with trainer.model.disable_adapter():
        reference = margins()
    expected = [
        -math.log(1 / (1 + math.exp(-0.3 * (one - other)))) for one, other in zip(policy, reference, strict=True)
    ]
    report = trainer.step(judged_batch())
    assert report.loss == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert (report.used, report.tokens, report.skipped) == (4, 10, {"odd": 1})


@pytest.mark.parametrize(
    ("method", "used", "skipped"),
    [
        ("dpo", 4, {"odd": 1}),
        ("kto", 4, {"zero_advantage": 1}),
        ("sft", 2, {"not_best": 3}),
    ],
)
def test_each_method_makes_what_was_better_likelier_than_what_was_worse(method, used, skipped):
    """A few steps widen the margin between better and worse completions of both prompts; sft raises the best itself."""
    trainer = make(method, learning_rate=0.01, epochs=2)
    before = [logprob(trainer, GOOD), logprob(trainer, BAD), logprob(trainer, BAD, "w7"), logprob(trainer, GOOD, "w7")]
    for _ in range(3):
        report = trainer.step(judged_batch())
    after = [logprob(trainer, GOOD), logprob(trainer, BAD), logprob(trainer, BAD, "w7"), logprob(trainer, GOOD, "w7")]
    assert after[0] - after[1] > before[0] - before[1] + 0.5
    assert after[2] - after[3] > before[2] - before[3] + 0.5
    assert method != "sft" or (after[0] > before[0] and after[2] > before[2])
    assert (report.step, report.used, report.skipped) == (3, used, skipped)
    assert report.grad_norm > 0.0


@pytest.mark.parametrize("method", ["dpo", "kto", "sft"])
def test_a_resumed_step_of_each_method_is_the_one_that_would_have_been(method, tmp_path):
    """A trainer that was saved and loaded makes the next step as if it had gone on, and another method refuses it."""
    first, resumed = make(method, learning_rate=0.01), make(method, learning_rate=0.01)
    first.step(judged_batch())
    first.save(tmp_path)
    onward = first.step(judged_batch())
    resumed.load(tmp_path)
    assert resumed.step(judged_batch()).loss == pytest.approx(onward.loss, abs=1e-6)
    for one, other in zip(first.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=1e-6)
    with pytest.raises(CheckpointError, match="was written with method"):
        make("grpo", learning_rate=0.01).load(tmp_path)


def test_a_batch_without_a_row_leaves_the_weights():
    """Where no two completions of one prompt differ in reward, dpo has nothing to learn, and says why."""
    trainer = make("dpo")
    before = [weight.clone() for weight in trainer.model.parameters()]
    report = trainer.step(
        GroupBatch([group(said(GOOD, 1.0, 0.0), said(BAD, 1.0, 0.0)), group(said(GOOD, 0.0, 0.0, "w9"))])
    )
    assert (report.used, report.tokens, report.loss, report.skipped) == (0, 0, 0.0, {"no_partner": 1, "too_close": 2})
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))


def test_a_teachers_words_are_imitated():
    """The best member may be a teacher's whose text alone is known; sft learns the policy's tokens of it."""
    trainer = make("sft", learning_rate=0.01)
    known = {"prompt_ids": None, "completion_ids": None, "teacher": "other"}
    batch = GroupBatch([group(replace(said(GOOD, 1.0, 0.7), **known), said(BAD, 0.0, -0.7))])
    before = logprob(trainer, GOOD)
    report = trainer.step(batch)
    assert (report.used, report.tokens, report.skipped) == (1, 3, {"not_best": 1})
    assert logprob(trainer, GOOD) > before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ppo"}, "the trl trainer's method is 'ppo'"),
        ({"rank": 3}, "the trl trainer has no setting 'rank'; it has "),
        ({"adapter_per_module": True}, "one adapter for all modules"),
        ({"device": "cuda:3"}, "accelerate chooses it"),
    ],
)
def test_what_it_cannot_be_told_is_refused(settings, message):
    """Each refusal names the setting and what to do."""
    with pytest.raises(InvalidInput, match=message):
        TrlTrainer((tiny_model(), tiny_tokenizer()), **settings)


def test_one_process_before_several_gpus_is_told_how_to_start(monkeypatch):
    """TRL would cut each batch over all GPUs that a process sees, by a way that its loss does not know."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InvalidInput, match="this one process sees 4 GPUs; start it with accelerate launch --multi_gpu"):
        TrlTrainer((tiny_model(), tiny_tokenizer()))
