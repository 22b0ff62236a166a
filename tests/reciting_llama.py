"""A byte-level tokenizer, and a Llama whose weights make it say one given text after any prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROLES = ["<system>", "<user>", "<assistant>", "<tool>"]
SPECIAL = ["<end>", *ROLES, "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"]


def byte_tokenizer(template: str, pieces: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each piece, which no text is ever encoded as."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [f"§{index}§{piece.replace(' ', 'Ġ').replace(chr(10), 'Ċ')}" for index, piece in enumerate(pieces)]
    inner = Tokenizer(models.BPE({token: index for index, token in enumerate([*letters, *spelled])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.Sequence([decoders.Replace(Regex("§[0-9]+§"), ""), decoders.ByteLevel()])
    inner.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    tokenizer.chat_template = template
    return tokenizer


def reciting_model(tokenizer: PreTrainedTokenizerFast, said: Sequence[int]) -> LlamaForCausalLM:
    """After the token `<assistant>` it says these tokens, each at most once, and then the end token."""
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size + size % 2,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    chain = [tokenizer.convert_tokens_to_ids("<assistant>"), *said, tokenizer.eos_token_id]
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.zero_()  # every layer passes on what it gets
        model.model.embed_tokens.weight.copy_(torch.eye(size, config.hidden_size))
        model.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            model.lm_head.weight[following, token] = 10.0
    return model


def recite(template: str, pieces: Sequence[str]) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model that says these pieces one after the other; special tokens are said as what they are."""
    tokenizer = byte_tokenizer(template, pieces)
    first = len(pre_tokenizers.ByteLevel.alphabet())
    said = [
        tokenizer.convert_tokens_to_ids(piece) if piece in SPECIAL else first + index
        for index, piece in enumerate(pieces)
    ]
    return reciting_model(tokenizer, said), tokenizer
