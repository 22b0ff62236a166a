"""The loss, token by token, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracetune.trainers.local.loss import NORMALISATIONS, Counts, token_losses

finite = st.floats(-3.0, 3.0, width=32)
tokens = st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=8)


def test_clipped_losses_are_those_worked_out_by_hand():
    """A gain stops at the clip where it would grow, and goes on where it would shrink."""
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 2.0, -2.0, 2.0, -2.0])
    losses = token_losses(ratios.log(), torch.zeros(5), advantages, clip=0.2)
    torch.testing.assert_close(losses.loss_T, torch.tensor([-2.0, -2.4, 3.0, -1.0, 1.6]))
    assert losses.clipped_T.tolist() == [False, True, False, False, True]
    assert losses.kl_T is None


def test_the_penalty_is_the_k3_estimate():
    """With the reference at twice the probability, the penalty is 2 - ln 2 - 1 a token."""
    losses = token_losses(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.tensor([math.log(2.0)]), kl=0.5)
    assert losses.kl_T.item() == pytest.approx(1.0 - math.log(2.0))
    assert losses.loss_T.item() == pytest.approx(-1.0 + 0.5 * (1.0 - math.log(2.0)))


def test_a_clipped_token_has_no_gradient():
    """Past the clip, moving a token's probability changes nothing."""
    logprobs = torch.tensor([0.5, 0.0], requires_grad=True)
    token_losses(logprobs, torch.zeros(2), torch.ones(2)).loss_T.sum().backward()
    assert logprobs.grad.tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    ("name", "weight"),
    [("grpo", 1 / (5 * 3 * 2)), ("bnpo", 1 / (20 * 2)), ("dr_grpo", 1 / (8 * 3 * 2)), ("dapo", 1 / 60)],
)
def test_weights_of_a_token(name, weight):
    """A token of 5 in its member, of 3 members with 20 tokens, of 2 groups with 60, weighs what its loss says."""
    counts = Counts(unit_tokens=5, units=3, group_tokens=20, groups=2, step_tokens=60, max_completion_length=8)
    assert NORMALISATIONS[name](counts) == pytest.approx(weight)


@settings(deadline=None)
@given(tokens)
def test_the_loss_is_never_below_the_unclipped_one(rows):
    """Clipping only ever takes gain away: it is a lower bound of the unclipped objective."""
    logprobs, old, advantages, reference = torch.tensor(rows).unbind(1)
    losses = token_losses(logprobs, old, advantages, reference, kl=0.0)
    assert (losses.loss_T >= -torch.exp(logprobs - old) * advantages - 1e-4).all()


@settings(deadline=None)
@given(tokens)
def test_the_penalty_is_never_negative(rows):
    """The k3 estimate is 0 where the probabilities agree, and positive elsewhere."""
    logprobs, old, advantages, reference = torch.tensor(rows).unbind(1)
    losses = token_losses(logprobs, old, advantages, reference, kl=1.0)
    assert (losses.kl_T >= -1e-6).all()
    same = token_losses(logprobs, old, advantages, logprobs, kl=1.0)
    assert same.kl_T.abs().max() == 0.0
