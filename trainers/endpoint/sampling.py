"""How the next token of every row is drawn, for all rows of a batch at once.

Each row has its own temperature, truncation and source of random numbers; one uniform
number a row and token is turned into a token by the inverse of the cumulative
distribution, so a seeded row draws the same tokens whatever else is in the batch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tracetune.trainers.endpoint.grammars import Constraint
from tracetune.types import Sampling


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token a row.

    Attributes:
        tokens: the token ids.
        logprobs: their log-probabilities under the distribution that they were drawn from.
        logprobs_BV: that whole distribution of each row.
    """

    tokens: list[int]
    logprobs: list[float]
    logprobs_BV: torch.Tensor


class Sampler:
    """Draws for a fixed batch of rows.

    A greedy row (temperature 0) takes the likeliest token, and its log-probability is that
    under temperature 1: the distribution that it was "drawn from" would give 0 for every
    token and tell nothing. Where a constraint, top_p or top_k rule tokens out, what is left
    is renormalised.

    Example:
        >>> sampler = Sampler([Sampling(temperature=0.0)], [random.Random(0)])
        >>> sampler.draw(torch.tensor([[0.0, 2.0, 1.0]])).tokens
        [1]
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        sources: Sequence[random.Random],
        constraints: Sequence[Constraint | None] = (),
    ) -> None:
        greedy = [sampling.temperature == 0.0 for sampling in samplings]
        temperatures = [
            1.0 if is_greedy else sampling.temperature for is_greedy, sampling in zip(greedy, samplings, strict=True)
        ]
        self._greedy_B = torch.tensor(greedy) if any(greedy) else None
        self._all_greedy = all(greedy)
        self._temperatures_B1 = torch.tensor(temperatures)[:, None] if set(temperatures) != {1.0} else None
        self._truncated = [
            (row, sampling)
            for row, sampling in enumerate(samplings)
            if not greedy[row] and (sampling.top_k is not None or sampling.top_p not in (None, 1.0))
        ]
        self._constrained = [(row, rules) for row, rules in enumerate(constraints) if rules is not None]
        self._sources = sources

    def draw(self, logits_BV: torch.Tensor) -> Drawn:
        """Draw each row's next token.

        Args:
            logits_BV: what the model says, any float type.
        """
        logits_BV = logits_BV.float()
        if self._constrained:
            logits_BV = logits_BV.clone()
            for row, constraint in self._constrained:
                constraint.rule_out(logits_BV[row])
        if self._temperatures_B1 is not None:
            logits_BV = logits_BV / self._temperatures_B1.to(logits_BV.device)
        if self._truncated:
            logits_BV = logits_BV.clone()
            for row, sampling in self._truncated:
                _truncate(logits_BV[row], sampling)
        logprobs_BV = logits_BV.log_softmax(dim=-1)
        if self._all_greedy:
            tokens_B = logprobs_BV.argmax(dim=-1)
        else:
            tokens_B = _inverse_of_cumulative(logprobs_BV, [source.random() for source in self._sources])
            if self._greedy_B is not None:
                tokens_B = torch.where(self._greedy_B.to(tokens_B.device), logprobs_BV.argmax(dim=-1), tokens_B)
        logprobs_B = logprobs_BV.gather(1, tokens_B[:, None])[:, 0]
        return Drawn(tokens_B.tolist(), logprobs_B.tolist(), logprobs_BV)


def _inverse_of_cumulative(logprobs_BV: torch.Tensor, uniform: list[float]) -> torch.Tensor:
    # In double precision: over a large vocabulary, single precision would lose the rare tokens.
    cumulative_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.float64)
    uniform_B1 = torch.tensor(uniform, dtype=torch.float64, device=logprobs_BV.device)[:, None]
    # right=True never takes a token of probability 0, not even at a uniform number of 0.
    tokens_B1 = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:], right=True)
    return tokens_B1[:, 0].clamp_(max=logprobs_BV.shape[-1] - 1)


def _truncate(logits_V: torch.Tensor, sampling: Sampling) -> None:
    """Rule out, in place, what top_k and then top_p leave out."""
    if sampling.top_k is not None and sampling.top_k < logits_V.shape[-1]:
        smallest = logits_V.topk(sampling.top_k).values[-1]
        logits_V[logits_V < smallest] = -torch.inf
    if sampling.top_p is not None and sampling.top_p < 1.0:
        sorted_V, order_V = logits_V.sort(descending=True)
        probabilities_V = sorted_V.softmax(dim=-1)
        # A token stays while those before it have not yet reached top_p: the first always does.
        before_V = probabilities_V.cumsum(dim=-1) - probabilities_V
        logits_V[order_V[before_V >= sampling.top_p]] = -torch.inf
