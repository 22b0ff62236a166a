"""A Llama of a few thousand weights, its tokenizer, and groups of its own completions, for tests of trainers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tracetune.trainers.local import LocalTrainer
from tracetune.types import Group, GroupBatch, Member, Sampling, StepReport

WORDS = ["<pad>", "<eos>", "<user>", "<assistant>", "<unk>", *(f"w{number}" for number in range(35))]
EOS = 1
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_model(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama with grouped-query attention, large enough in spirit for its outputs to differ."""
    shape = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**shape, **changes})).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def member(
    prompt_ids: Sequence[int] | None,
    completion_ids: Sequence[int] | None,
    advantage: float,
    *,
    logprobs: Sequence[float] | None = None,
    temperature: float = 1.0,
    **changes: Any,
) -> Member:
    """One member of a group, as the store would give it."""
    values: dict[str, Any] = {
        "call_id": "call",
        "rollout_id": "rollout",
        "module": "answer",
        "messages": (),
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": logprobs,
        "text": "",
        "finish_reason": "stop",
        "sampling": Sampling(temperature=temperature),
        "policy_version": "run@0",
        "reward": advantage,
        "advantage": advantage,
    }
    return Member(**{**values, **changes})


def group(*members: Member) -> Group:
    """A group of members."""
    return Group({"run": "run", "module": "answer"}, members)


def own_logprobs(
    model: Any, prompt_ids: Sequence[int], completion_ids: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """Each completion token's log-probability: the member alone, every logit computed."""
    with torch.inference_mode():
        logits_TV = model(input_ids=torch.tensor([[*prompt_ids, *completion_ids]])).logits[0].double() / temperature
    logprobs_TV = logits_TV.log_softmax(-1)[len(prompt_ids) - 1 : -1]
    return logprobs_TV.gather(1, torch.tensor(completion_ids)[:, None])[:, 0].tolist()


def tiny_batch(
    model: Any,
    *,
    seed: int = 0,
    sizes: Sequence[int] = (4, 3),
    longest: int = 6,
    shift: float = 0.0,
    temperature: float = 1.0,
) -> GroupBatch:
    """Groups of unequal sizes and lengths with common beginnings, their log-probabilities shifted at random."""
    random = torch.Generator().manual_seed(seed)
    groups = []
    for size in sizes:
        prompt_ids = torch.randint(2, len(WORDS), (6,), generator=random).tolist()
        members = []
        for _ in range(size):
            length = int(torch.randint(0, longest, (), generator=random))
            completion_ids = [*torch.randint(2, 5, (length,), generator=random).tolist(), EOS]
            noise = shift * torch.randn(length + 1, generator=random)
            logprobs = torch.tensor(own_logprobs(model, prompt_ids, completion_ids, temperature)) + noise
            advantage = float(torch.randn((), generator=random))
            members.append(
                member(prompt_ids, completion_ids, advantage, logprobs=logprobs.tolist(), temperature=temperature)
            )
        groups.append(group(*members))
    return GroupBatch(groups)


def perturb(model: Any, scale: float, seed: int = 0) -> None:
    """Move every weight that learns, so that the model is no longer the one that sampled."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += scale * torch.randn(weight.shape, generator=random)


def gradients(trainer: LocalTrainer, batch: GroupBatch, folder: Path) -> tuple[StepReport, dict[str, torch.Tensor]]:
    """The report of a fresh trainer's first step, and the gradient it had: AdamW's first moment is a tenth of it."""
    report = trainer.step(batch)
    trainer.save(folder)
    moments = load_file(folder / "optimizer.safetensors")
    return report, {
        name.removesuffix(".exp_avg"): moment / 0.1 for name, moment in moments.items() if name.endswith(".exp_avg")
    }
