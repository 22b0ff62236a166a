"""Forwards: rows put together as tensors, and the model's answer for each completion token.

The model computes logits where a completion token is predicted and nowhere else. Rows of
one forward are padded at the right, where nothing looks at them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracetune.trainers.local.attention import tree_mask
from tracetune.trainers.local.rows import Row


@dataclass(frozen=True, slots=True)
class Forward:
    """One call of the model, and what is read from it.

    Axes: _B rows, _N nodes of the longest row, _U nodes that predict something, _T
    completion tokens of all members. Several tokens may be read at one node.

    Attributes:
        subtree_ends_BN: None where every row is a single path.
        positions_BN: likewise.
        predicting_BN: the nodes whose logits are needed.
        place_T: where among those each token is predicted.
        recorded_logprobs_T: not a number where they are not known.
        weights_T: of each token in the step's loss.
        corrected_T: tokens that are weighed by their importance.
        imitated_T: tokens that are to become likelier, whoever sampled them.
        lengths: how many tokens each completion has, in the tokens' order.
    """

    input_ids_BN: Tensor
    subtree_ends_BN: Tensor | None
    positions_BN: Tensor | None
    predicting_BN: Tensor
    place_T: Tensor
    targets_T: Tensor
    temperatures_T: Tensor
    recorded_logprobs_T: Tensor
    advantages_T: Tensor
    weights_T: Tensor
    corrected_T: Tensor
    imitated_T: Tensor
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True)
class TokenReadings:
    """What the model says of each completion token: its log-probability and the entropy where it was drawn, nats."""

    logprobs_T: Tensor
    entropies_T: Tensor


def forwards_of(rows: Sequence[Row], budget: int, device: torch.device) -> Iterator[Forward]:
    """Put rows together into forwards of at most `budget` tokens, padding included.

    A row that is longer than the budget gets a forward of its own. Paths and trees are
    kept apart, since only trees need a mask. Each forward is made when it is asked for,
    so that there is one in memory at a time; the same rows give the same forwards.
    """
    for is_path in (True, False):
        waiting: list[Row] = []
        for row in sorted((row for row in rows if row.is_path == is_path), key=len, reverse=True):
            if waiting and (len(waiting) + 1) * len(waiting[0]) > budget:
                yield _forward(waiting, device, is_path=is_path)
                waiting = []
            waiting.append(row)
        if waiting:
            yield _forward(waiting, device, is_path=is_path)


def read_tokens(model: Any, forward: Forward) -> TokenReadings:
    """Run the model; gradients flow through the log-probabilities and not through the entropies."""
    ends_BN = forward.subtree_ends_BN
    logits_UV = model(
        input_ids=forward.input_ids_BN,
        attention_mask=None if ends_BN is None else tree_mask(model, ends_BN),
        position_ids=forward.positions_BN,
        logits_to_keep=forward.predicting_BN,
        use_cache=False,
    ).logits.float()
    temperatures = sorted(set(forward.temperatures_T.tolist()))
    logprobs_T = logits_UV.new_empty(len(forward.targets_T))
    entropies_T = torch.empty_like(logprobs_T)
    for temperature in temperatures:
        here = slice(None) if len(temperatures) == 1 else forward.temperatures_T == temperature
        place_T, targets_T = forward.place_T[here], forward.targets_T[here]
        scaled_UV = logits_UV if temperature == 1.0 else logits_UV / temperature
        normaliser_U = scaled_UV.logsumexp(-1)
        # One-dimensional selections: their gradient is added up in a fixed order, so that a step can be repeated.
        chosen_T = scaled_UV.view(-1).index_select(0, place_T * scaled_UV.shape[1] + targets_T)
        logprobs_T[here] = chosen_T - normaliser_U.index_select(0, place_T)
        with torch.no_grad():
            probabilities_UV = torch.exp(scaled_UV - normaliser_U[:, None])
            entropies_T[here] = (normaliser_U - torch.linalg.vecdot(probabilities_UV, scaled_UV))[place_T]
    return TokenReadings(logprobs_T, entropies_T)


def _forward(rows: Sequence[Row], device: torch.device, *, is_path: bool) -> Forward:
    longest = max(map(len, rows))
    input_ids_BN = np.zeros((len(rows), longest), dtype=np.int64)
    positions_BN = np.zeros_like(input_ids_BN)
    predicting_BN = np.zeros_like(input_ids_BN, dtype=bool)
    for index, row in enumerate(rows):
        input_ids_BN[index, : len(row)] = row.token_ids
        positions_BN[index, : len(row)] = row.positions
        for reading in row.readings:
            predicting_BN[index, reading.nodes] = True
    # The order in which boolean indexing gives the nodes: row by row, each from left to right.
    rank_BN = np.cumsum(predicting_BN.reshape(-1)).reshape(predicting_BN.shape) - 1

    readings = [(index, reading) for index, row in enumerate(rows) for reading in row.readings]
    members = [reading.member for _, reading in readings]
    lengths = [len(member.completion_ids) for member in members]
    unknown = [(math.nan,) * length for length in lengths]

    def put(values: Any) -> Tensor:
        return torch.as_tensor(values).to(device)

    def each_token(values: Sequence[float], kind: type = np.float32) -> Tensor:
        return put(np.repeat(np.array(values, dtype=kind), lengths))

    return Forward(
        input_ids_BN=put(input_ids_BN),
        subtree_ends_BN=None if is_path else put(np.stack([row.subtree_ends(longest) for row in rows])),
        positions_BN=None if is_path else put(positions_BN),
        predicting_BN=put(predicting_BN),
        place_T=put(np.concatenate([rank_BN[index, reading.nodes] for index, reading in readings])),
        targets_T=put(np.concatenate([member.completion_ids for member in members])),
        temperatures_T=each_token([member.temperature for member in members]),
        recorded_logprobs_T=put(
            np.concatenate(
                [member.logprobs or nothing for member, nothing in zip(members, unknown, strict=True)], dtype=np.float32
            )
        ),
        advantages_T=each_token([member.advantage for member in members]),
        weights_T=each_token([member.weight for member in members]),
        corrected_T=each_token([member.is_corrected for member in members], np.bool_),
        imitated_T=each_token([member.is_imitated for member in members], np.bool_),
        lengths=lengths,
    )
