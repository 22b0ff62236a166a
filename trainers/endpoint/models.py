"""What the decode loop must know of a model: its text, its last words, and whether its rows can be cached."""

from __future__ import annotations

from itertools import groupby

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracetune.errors import EndpointError
from tracetune.trainers.endpoint.text import Decode
from tracetune.trainers.endpoint.tool_calls import MARKERS

# What keys and values may take where the caller does not say.
CACHE_BYTES = 4 * 1024**3


def cache_tokens_of(model: PreTrainedModel) -> int:
    """How many tokens' keys and values fit in `CACHE_BYTES`."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token: int = 2 * config.num_hidden_layers * heads * head_size * model.dtype.itemsize
    return max(1, CACHE_BYTES // a_token)


def decode_of(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Makes text of token ids, special tokens left out but for those that mark a tool call."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    markers = {token: str(known) for token, known in added.items() if known.special and str(known) in MARKERS}

    def plain(token_ids: list[int]) -> str:
        text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one list of ids, one text
        return text

    def decode(token_ids: list[int]) -> str:
        pieces = groupby(token_ids, key=markers.get)
        return "".join(plain(list(ids)) if marker is None else marker * len(list(ids)) for marker, ids in pieces)

    return decode if markers else plain


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end a completion: the tokenizer's, and those of the model's generation config."""
    generation_config = getattr(model, "generation_config", None)
    ends = getattr(generation_config, "eos_token_id", None)
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)


def check_attention(model: PreTrainedModel) -> None:
    """Rows can be cached here where every layer looks at the whole sequence.

    Raises:
        EndpointError: if some layers do not.
    """
    config = model.config.get_text_config(decoder=True)
    default = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    kinds = set(getattr(config, "layer_types", None) or [default])
    if kinds != {"full_attention"}:
        raise EndpointError(
            f"{config.model_type} has layers of kind {', '.join(sorted(kinds - {'full_attention'}))}, and the local "
            "endpoint decodes full attention only; serve it with an inference server, or choose a Llama-like model"
        )
