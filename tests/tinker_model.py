"""What a Tinker-shaped service computes: adapters that learn from the bytes they are sent, and samples of them.

The losses here are written from Tinker's own description, over whole padded sequences,
and know nothing of how tracetune computes them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tinker.proto import tinker_public_pb2 as wire
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from tracetune.trainers.local.lora import FIRST, Adapters

ALPHA = 64
BATCH = 64
DTYPES = {wire.DTYPE_FLOAT32: np.float32, wire.DTYPE_INT64: np.int64}


@dataclass(frozen=True)
class State:
    """All of an adapter that learns: what `save_weights` keeps."""

    rank: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]


class Learner:
    """An adapter on a base model, and its optimiser."""

    def __init__(self, base: Any, rank: int, seed: int) -> None:
        self.rank = rank
        self.adapter = Adapters(copy.deepcopy(base), rank=rank, alpha=ALPHA, dropout=0.0, seed=seed)
        self.parameters = self.adapter.parameters(FIRST)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=1.0)
        self.losses: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        self.updates = 0

    @classmethod
    def of(cls, base: Any, state: State) -> Learner:
        """An adapter as it was saved."""
        learner = cls(base, state.rank, 0)
        learner.put(state.weights)
        learner.optimizer.load_state_dict(copy.deepcopy(state.optimizer))
        return learner

    def state(self) -> State:
        """A copy that later updates leave alone."""
        return State(self.rank, self.copy(), copy.deepcopy(self.optimizer.state_dict()))

    def copy(self) -> dict[str, Tensor]:
        """The adapter's weights."""
        return {name: weight.detach().clone() for name, weight in self.parameters.items()}

    def put(self, weights: dict[str, Tensor]) -> None:
        """Take weights that were copied."""
        with torch.no_grad():
            for name, weight in weights.items():
                self.parameters[name].copy_(weight)

    def forward_backward(self, request: wire.ForwardBackwardRequest) -> bytes:
        """The log-probabilities of all targets; adds the gradient up unless it is a forward only."""
        config = {name: value.number for name, value in request.loss_fn_config_v2.items()}
        outputs: dict[int, np.ndarray] = {}
        total = 0.0
        # Sequences of like length are padded least.
        order = sorted(range(len(request.data)), key=lambda index: len(_input(request.data[index], "target_tokens")))
        with torch.set_grad_enabled(not request.forward_only):
            for start in range(0, len(order), BATCH):
                indices = order[start : start + BATCH]
                losses = []
                for index, logprobs_T in zip(indices, self._logprobs([request.data[i] for i in indices]), strict=True):
                    losses.append(_loss(request.loss_fn, logprobs_T, request.data[index], config))
                    outputs[index] = logprobs_T.detach().numpy()
                loss = torch.stack(losses).sum()
                total += loss.item()
                if not request.forward_only:
                    loss.backward()
        if not request.forward_only:
            self.losses.append(total)
        return _output([outputs[index] for index in range(len(order))], total)

    def optim_step(self, params: dict[str, Any]) -> dict[str, float]:
        """One step of AdamW; gives its metrics."""
        self.gradients = {name: weight.grad.clone() for name, weight in self.parameters.items()}
        limit = params["grad_clip_norm"] or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        for group in self.optimizer.param_groups:
            group["lr"], group["eps"], group["weight_decay"] = (
                params[name] for name in ("learning_rate", "eps", "weight_decay")
            )
            group["betas"] = (params["beta1"], params["beta2"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        return {"grad_norm:mean": float(norm)} if norm.isfinite() else {}  # JSON has no other numbers

    def _logprobs(self, data: Sequence[wire.Datum]) -> list[Tensor]:
        inputs = [tuple(_tokens(datum)) for datum in data]
        different = list(dict.fromkeys(inputs))
        # Padding stands at the end, where causal attention does not look.
        inputs_BT = pad_sequence([torch.tensor(tokens, dtype=torch.long) for tokens in different], batch_first=True)
        logprobs_BTV = self.adapter.model(input_ids=inputs_BT, use_cache=False).logits.float().log_softmax(-1)
        logprobs = []
        for datum, tokens in zip(data, inputs, strict=True):
            targets_T = torch.tensor(_input(datum, "target_tokens"))
            logprobs_TV = logprobs_BTV[different.index(tokens), : len(targets_T)]
            logprobs.append(logprobs_TV.gather(1, targets_T[:, None])[:, 0])
        return logprobs


def _loss(name: str, logprobs_T: Tensor, datum: wire.Datum, config: dict[str, float]) -> Tensor:
    """The sum over one sequence, as Tinker's documents define it."""
    if name == "cross_entropy":
        return -(logprobs_T * torch.tensor(_input(datum, "weights"))).sum()
    advantages_T = torch.tensor(_input(datum, "advantages"))
    ratio_T = torch.exp(logprobs_T - torch.tensor(_input(datum, "logprobs")))
    if name == "importance_sampling":
        return -(ratio_T * advantages_T).sum()
    clipped_T = torch.clamp(ratio_T, config["clip_low_threshold"], config["clip_high_threshold"])
    if name == "ppo":
        return -torch.min(ratio_T * advantages_T, clipped_T * advantages_T).sum()
    assert name == "cispo", name
    return -(clipped_T.detach() * logprobs_T * advantages_T).sum()


def _tokens(datum: wire.Datum) -> np.ndarray:
    return np.concatenate([np.frombuffer(chunk.encoded_text.tokens, np.int32) for chunk in datum.model_input])


def _input(datum: wire.Datum, name: str) -> np.ndarray:
    tensor = datum.loss_fn_inputs[name]
    return np.frombuffer(tensor.dense, DTYPES[tensor.dtype]).reshape(tuple(tensor.shape)).copy()


def _output(logprobs: Sequence[np.ndarray], total: float) -> bytes:
    offsets = np.cumsum([0, *(values.nbytes for values in logprobs)]).astype(np.int64)
    output = wire.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics={"loss:sum": total})
    record = output.loss_fn_outputs.add(num_datums=len(logprobs))
    field = record.fields["logprobs"]
    field.data, field.offsets = b"".join(map(np.ndarray.tobytes, logprobs)), offsets.tobytes()
    field.dtype = wire.DTYPE_FLOAT32
    return output.SerializeToString()


@dataclass
class Draw:
    """One sample that is asked for."""

    prompt: tuple[int, ...]
    params: dict[str, Any]
    source: torch.Generator | None = None

    def __post_init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.stop_reason: int | None = None


def sample(model: Any, draws: Sequence[Draw], end: int, decode: Callable[[list[int]], str]) -> None:
    """Draw every row's tokens, all rows together; each different prompt is read once."""
    prompts = list(dict.fromkeys(draw.prompt for draw in draws))
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache = DynamicCache()
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits_BV = model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache, logits_to_keep=1
        ).logits[:, -1]
        rows = torch.tensor([prompts.index(draw.prompt) for draw in draws])
        cache.reorder_cache(rows)
        logits_BV, mask_BT, positions_B = logits_BV[rows], mask_BT[rows], positions_BT[rows, -1]
        while True:
            tokens = [_draw(draw, logits_V, end, decode) for draw, logits_V in zip(draws, logits_BV, strict=True)]
            if all(draw.stop_reason is not None for draw in draws):
                return
            positions_B = positions_B + 1
            mask_BT = torch.cat([mask_BT, torch.ones(len(draws), 1, dtype=mask_BT.dtype)], 1)
            logits_BV = model(
                input_ids=torch.tensor(tokens)[:, None],
                attention_mask=mask_BT,
                position_ids=positions_B[:, None],
                past_key_values=cache,
            ).logits[:, -1]


def _draw(draw: Draw, logits_V: Tensor, end: int, decode: Callable[[list[int]], str]) -> int:
    if draw.stop_reason is not None:
        return end
    temperature = draw.params["temperature"]
    logprobs_V = (logits_V.float() / (temperature or 1.0)).log_softmax(-1)
    if temperature == 0.0:
        token = int(logprobs_V.argmax())
    else:
        probabilities_V = logprobs_V.exp()
        if draw.params["top_p"] < 1.0:
            ordered_V, order_V = probabilities_V.sort(descending=True)
            probabilities_V[order_V[ordered_V.cumsum(0) - ordered_V >= draw.params["top_p"]]] = 0.0
        if draw.params["top_k"] > 0:
            probabilities_V[probabilities_V < probabilities_V.topk(draw.params["top_k"]).values[-1]] = 0.0
        logprobs_V = (probabilities_V / probabilities_V.sum()).log()
        token = int(torch.multinomial(probabilities_V, 1, generator=draw.source))
    draw.tokens.append(token)
    draw.logprobs.append(float(logprobs_V[token]))
    stop = draw.params.get("stop")
    text = decode(draw.tokens) if stop else ""
    if (token == end and stop != []) or any(string in text for string in stop or ()):
        draw.stop_reason = wire.STOP_REASON_STOP
    elif len(draw.tokens) == draw.params["max_tokens"]:
        draw.stop_reason = wire.STOP_REASON_LENGTH
    return token


def prompt_logprobs(model: Any, prompt: Sequence[int]) -> np.ndarray:
    """Of each token of a prompt but the first, which has none."""
    with torch.no_grad():
        logprobs_TV = model(input_ids=torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    found = logprobs_TV[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
    return np.concatenate([[np.nan], found.numpy()]).astype(np.float32)


def sample_response(draws: Sequence[Draw], logprobs: np.ndarray | None) -> bytes:
    """What came of one request, as it is sent."""
    response = wire.SampleResponse()
    if logprobs is not None:
        response.prompt_logprobs = logprobs.tobytes()
    for draw in draws:
        response.sequences.add(
            stop_reason=draw.stop_reason,
            tokens=np.array(draw.tokens, np.int32).tobytes(),
            logprobs=np.array(draw.logprobs, np.float32).tobytes(),
        )
    return response.SerializeToString()
