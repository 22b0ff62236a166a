"""The loss, token by token, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracetune.trainers.local.importance import truncated_importance
from tracetune.trainers.local.loss import LOSSES, Counts, token_losses

finite = st.floats(-3.0, 3.0, width=32)
tokens = st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=8)


def test_clipped_losses_are_those_worked_out_by_hand():
    """A gain stops at the clip where it would grow, and goes on where it would shrink."""
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0])
    losses = token_losses(ratios.log(), torch.zeros(5), advantages, lengths=[5], clip=0.2)
    torch.testing.assert_close(losses.loss_T, torch.tensor([-2.0, -2.4, 3.0, -1.0, 1.6]))
    assert losses.clipped_T.tolist() == [False, True, False, False, True]
    assert losses.kl_T is None


def test_the_penalty_is_the_k3_estimate():
    """With the reference at twice the probability, the penalty is 2 - ln 2 - 1 a token."""
    losses = token_losses(
        torch.zeros(1), torch.zeros(1), torch.ones(1), torch.tensor([math.log(2.0)]), lengths=[1], kl=0.5
    )
    assert losses.kl_T.item() == pytest.approx(1.0 - math.log(2.0))
    assert losses.loss_T.item() == pytest.approx(-1.0 + 0.5 * (1.0 - math.log(2.0)))


def test_a_clipped_token_has_no_gradient():
    """Past the clip, moving a token's probability changes nothing."""
    logprobs = torch.tensor([0.5, 0.0], requires_grad=True)
    token_losses(logprobs, torch.zeros(2), torch.ones(2), lengths=[2]).loss_T.sum().backward()
    assert logprobs.grad.tolist() == [0.0, -1.0]


TWO_TOKENS = {
    # loss, A, the losses of two tokens of ratios 2 and 1/2, their gradients by log-probability, what is clipped
    "a gain above the clip stops, one below goes on": ("grpo", 1.0, [-1.2, -0.5], [0.0, -0.5], [True, False]),
    "a loss below the clip stops, one above goes on": ("grpo", -1.0, [2.0, 0.8], [2.0, 0.0], [False, True]),
    "bnpo is token by token the same": ("bnpo", 1.0, [-1.2, -0.5], [0.0, -0.5], [True, False]),
    "dr_grpo is token by token the same": ("dr_grpo", 1.0, [-1.2, -0.5], [0.0, -0.5], [True, False]),
    "dapo is token by token the same": ("dapo", -1.0, [2.0, 0.8], [2.0, 0.0], [False, True]),
    # The geometric mean of 2 and 1/2 is 1, and each token has half of its gradient, for each of the two losses.
    "gspo compares the completion": ("gspo", 1.0, [-1.0, -1.0], [-1.0, -1.0], [False, False]),
    # Token 1 has log-probability ln 2 - 1, token 2 has -ln 2 - 1; the weights are 1.2 and 1/2, and have no gradient.
    "cispo weighs the log-probability": (
        "cispo",
        1.0,
        [-1.2 * (math.log(2) - 1), -0.5 * (-math.log(2) - 1)],
        [-1.2, -0.5],
        [True, False],
    ),
    "cispo cuts off the weight of what was bad, too": (
        "cispo",
        -2.0,
        [2.4 * (math.log(2) - 1), 1.0 * (-math.log(2) - 1)],
        [2.4, 1.0],
        [False, False],
    ),
}


@pytest.mark.parametrize(
    ("loss", "advantage", "expected", "gradient", "clipped"), TWO_TOKENS.values(), ids=TWO_TOKENS.keys()
)
def test_two_tokens(loss, advantage, expected, gradient, clipped):
    """A completion of two tokens, one twice as likely as it was and one half as likely, by hand."""
    old = torch.tensor([-1.0, -1.0])
    logprobs = (old + torch.tensor([2.0, 0.5]).log()).requires_grad_()
    losses = token_losses(logprobs, old, torch.full((2,), advantage), lengths=[2], loss=loss)
    losses.loss_T.sum().backward()
    torch.testing.assert_close(losses.loss_T.detach(), torch.tensor(expected))
    torch.testing.assert_close(logprobs.grad, torch.tensor(gradient))
    assert losses.clipped_T.tolist() == clipped


def test_a_completion_is_clipped_as_a_whole():
    """With gspo, tokens of ratio 4 and 1 have a ratio of 2 together: both stop at the clip."""
    logprobs = torch.tensor([math.log(4.0), 0.0, 0.0], requires_grad=True)
    losses = token_losses(logprobs, torch.zeros(3), torch.ones(3), lengths=[2, 1], loss="gspo", clip=0.1, clip_high=0.5)
    losses.loss_T.sum().backward()
    torch.testing.assert_close(losses.loss_T.detach(), torch.tensor([-1.5, -1.5, -1.0]))
    assert logprobs.grad.tolist() == [0.0, 0.0, -1.0]
    assert losses.clipped_T.tolist() == [True, True, False]


@pytest.mark.parametrize("loss", ["grpo", "gspo"])
def test_the_clip_may_be_wider_above(loss):
    """A ratio of 1.4 goes on under a bound of 1.5 above, and one of 0.8 stops at 0.9 below."""
    logprobs = torch.tensor([1.4, 0.8]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0])
    losses = token_losses(logprobs, torch.zeros(2), advantages, lengths=[1, 1], loss=loss, clip=0.1, clip_high=0.5)
    losses.loss_T.sum().backward()
    torch.testing.assert_close(losses.loss_T.detach(), torch.tensor([-1.4, 0.9]))
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.4, 0.0]))


def test_importance_weighs_the_gain_and_not_the_penalty():
    """A token of weight 3 gains three times as much, and is held to the reference as strongly as ever."""
    zero, reference = torch.zeros(1), torch.tensor([math.log(2.0)])
    losses = token_losses(
        zero, zero, torch.tensor([2.0]), reference, lengths=[1], kl=0.5, importance_T=torch.tensor([3.0])
    )
    assert losses.loss_T.item() == pytest.approx(-6.0 + 0.5 * (1.0 - math.log(2.0)))


def test_an_imitated_token_has_its_negative_log_likelihood():
    """Whatever the loss, its gradient is minus the weight of imitation, and it is never clipped."""
    for loss in LOSSES:
        logprobs = torch.tensor([-3.0, -2.0], requires_grad=True)
        losses = token_losses(
            logprobs,
            torch.tensor([-3.0, -9.0]),
            torch.tensor([0.5, 0.5]),
            lengths=[2],
            loss=loss,
            imitated_T=torch.tensor([True, True]),
        )
        losses.loss_T.sum().backward()
        torch.testing.assert_close(losses.loss_T.detach(), torch.tensor([1.5, 1.0]))
        assert logprobs.grad.tolist() == [-0.5, -0.5]
        assert losses.clipped_T.tolist() == [False, False]


def test_importance_is_cut_off_token_by_token_or_as_a_whole():
    """Ratios 4 and 1/2 to whoever sampled are 3 and 1/2 under a cap of 3, or 2 for both; the unknown weighs 1."""
    first = torch.tensor([0.8, 0.2, 0.6]).log()
    recorded = torch.tensor([math.log(0.2), math.log(0.4), math.nan])
    by_token, by_sequence, capped = (
        truncated_importance(first, recorded, [2, 1], level=level, cap=cap)
        for level, cap in (("token", 3.0), ("sequence", 3.0), ("sequence", 1.5))
    )
    torch.testing.assert_close(by_token, torch.tensor([3.0, 0.5, 1.0]))
    torch.testing.assert_close(by_sequence, torch.tensor([2.0, 2.0, 1.0]))
    torch.testing.assert_close(capped, torch.tensor([1.5, 1.5, 1.0]))


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("grpo", 1 / (5 * 3 * 2)),
        ("bnpo", 1 / (20 * 2)),
        ("dr_grpo", 1 / (8 * 3 * 2)),
        ("dapo", 1 / 60),
        ("gspo", 1 / (5 * 3 * 2)),
        ("cispo", 1 / 60),
    ],
)
def test_weights_of_a_token(name, weight):
    """A token of 5 in its member, of 3 members with 20 tokens, of 2 groups with 60, weighs what its loss says."""
    counts = Counts(unit_tokens=5, units=3, group_tokens=20, groups=2, step_tokens=60, max_completion_length=8)
    assert LOSSES[name].weight(counts) == pytest.approx(weight)


@given(tokens)
def test_the_loss_is_never_below_the_unclipped_one(rows):
    """Clipping only ever takes gain away: it is a lower bound of the unclipped objective."""
    logprobs, old, advantages, reference = torch.tensor(rows).unbind(1)
    losses = token_losses(logprobs, old, advantages, reference, lengths=[len(rows)], kl=0.0)
    assert (losses.loss_T >= -torch.exp(logprobs - old) * advantages - 1e-4).all()


@given(tokens)
def test_the_penalty_is_never_negative(rows):
    """The k3 estimate is 0 where the probabilities agree, and positive elsewhere."""
    logprobs, old, advantages, reference = torch.tensor(rows).unbind(1)
    losses = token_losses(logprobs, old, advantages, reference, lengths=[len(rows)], kl=1.0)
    assert (losses.kl_T >= -1e-6).all()
    same = token_losses(logprobs, old, advantages, logprobs, lengths=[len(rows)], kl=1.0)
    assert same.kl_T.abs().max() == 0.0
