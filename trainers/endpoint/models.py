"""What the decode loop must know of a model: its text, its last words, and whether its rows can be cached."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracetune.errors import EndpointError
from tracetune.trainers.endpoint.text import Decode


def decode_of(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Makes text of token ids, special tokens left out."""

    def decode(token_ids: list[int]) -> str:
        text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # one list of ids, one text
        return text

    return decode


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
