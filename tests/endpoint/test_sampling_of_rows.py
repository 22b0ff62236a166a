"""Drawing the next token of each row of a batch."""

from __future__ import annotations

import random

import pytest
import torch

from tracetune.trainers.endpoint.sampling import Sampler
from tracetune.types import Sampling

LOGITS_V = torch.tensor([2.0, 1.0, 0.0, -1.0, 1.5])


def draws(sampling, count=4000):
    """How often each token is drawn, and each token's recorded log-probability."""
    sampler = Sampler([sampling] * count, [random.Random(seed) for seed in range(count)])
    drawn = sampler.draw(LOGITS_V.repeat(count, 1))
    frequencies = torch.bincount(torch.tensor(drawn.tokens), minlength=5) / count
    return frequencies, dict(zip(drawn.tokens, drawn.logprobs, strict=True))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1.0, top_p=1.0), [0, 1, 2, 3, 4]),
        (Sampling(temperature=0.5, top_p=1.0), [0, 1, 2, 3, 4]),
        (Sampling(temperature=2.0, top_p=1.0, top_k=3), [0, 1, 4]),
        (Sampling(temperature=1.0, top_p=0.5), [0, 4]),
        (Sampling(temperature=1.0, top_p=0.01), [0]),
        (Sampling(temperature=1.0, top_p=0.9, top_k=2), [0, 4]),
        (Sampling(temperature=1.0, top_p=1.0, top_k=99), [0, 1, 2, 3, 4]),
    ],
)
def test_tokens_are_drawn_from_the_distribution_that_is_recorded(sampling, kept):
    """Frequencies and log-probabilities are those of the tempered, truncated, renormalised softmax."""
    expected_V = torch.full((5,), -torch.inf)
    expected_V[kept] = (LOGITS_V[kept] / sampling.temperature).log_softmax(-1)
    frequencies, logprobs = draws(sampling)
    torch.testing.assert_close(frequencies, expected_V.exp(), atol=0.03, rtol=0)
    assert set(logprobs) <= set(kept)
    for token, logprob in logprobs.items():
        assert logprob == pytest.approx(expected_V[token].item(), abs=1e-6)


def test_rows_of_one_batch_keep_their_own_sampling():
    """A greedy, a truncated and a hot row beside one another each get what they get alone."""
    samplings = [
        Sampling(temperature=0.0),
        Sampling(temperature=1.0, top_p=1.0, top_k=2),
        Sampling(temperature=3.0, top_p=1.0),
    ]
    logits_BV = LOGITS_V.repeat(3, 1)
    together = Sampler(samplings, [random.Random(5) for _ in samplings]).draw(logits_BV)
    alone = [Sampler([sampling], [random.Random(5)]).draw(LOGITS_V[None]) for sampling in samplings]
    assert together.tokens == [drawn.tokens[0] for drawn in alone]
    assert together.logprobs == pytest.approx([drawn.logprobs[0] for drawn in alone], abs=1e-6)


class Always(random.Random):
    """Gives one number."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def random(self):
        return self.number


@pytest.mark.parametrize(("uniform", "token"), [(0.0, 2), (1 - 2**-53, 3)])
def test_a_token_of_probability_0_is_never_drawn(uniform, token):
    """At both ends of the uniform numbers, ruled-out tokens stay out."""
    logits_BV = torch.tensor([[-torch.inf, -torch.inf, 0.0, 1.0, -torch.inf]])
    assert Sampler([Sampling(temperature=1.0, top_p=1.0)], [Always(uniform)]).draw(logits_BV).tokens == [token]


def test_drawing_leaves_the_logits_as_they_are():
    """Truncation works on a copy: prefixes keep their logits for later rows."""
    logits_BV = LOGITS_V[None].clone()
    Sampler([Sampling(temperature=1.0, top_p=0.5)], [random.Random(0)]).draw(logits_BV)
    assert torch.equal(logits_BV[0], LOGITS_V)
