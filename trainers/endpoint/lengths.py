"""How few tokens a text can have, told by its length alone.

Tokenising megabytes takes seconds, so a prompt that cannot fit is refused before. That is
certain only where every byte, or every character, of a text is in exactly one token:
tokenizers that drop text, or have one token for an unknown word of any length, have no such
bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# Steps that leave every character in the text, one for one.
_LOSSLESS = frozenset({"ByteLevel", "Split", "Digits", "Punctuation", "Metaspace"})


@dataclass(frozen=True, slots=True)
class LengthBound:
    """The longest token of a vocabulary.

    Attributes:
        longest: its length.
        in_bytes: whether that is in bytes of UTF-8, or in characters.
        normalizer: what texts go through before they are tokenised.
    """

    longest: int
    in_bytes: bool
    normalizer: Any

    def fewest_tokens(self, text: str) -> int:
        """How many tokens a text has at least."""
        if self.normalizer is not None:
            text = self.normalizer.normalize_str(text)
        return -(-(len(text.encode()) if self.in_bytes else len(text)) // self.longest)


def length_bound(tokenizer: PreTrainedTokenizerBase) -> LengthBound | None:
    """The bound of a tokenizer; None where its texts have none."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return None
    inner = tokenizer.backend_tokenizer
    if not isinstance(inner.model, models.BPE):
        return None
    added = list(tokenizer.added_tokens_decoder.values())
    # Such tokens take in white space beside them, however much there is.
    if any(token.lstrip or token.rstrip for token in added):
        return None
    steps = list(_steps(inner.pre_tokenizer))
    if any(step["type"] not in _LOSSLESS or step.get("behavior") == "Removed" for step in steps):
        return None
    vocabulary = tokenizer.get_vocab().keys()
    normalizers = list(_steps(inner.normalizer))
    in_bytes = any(step["type"] == "ByteLevel" for step in steps)
    if in_bytes:
        # Such a token's text has one character for each byte.
        is_whole = vocabulary >= set(pre_tokenizers.ByteLevel.alphabet())
        is_whole &= all(step["type"] == "NFC" for step in normalizers)
    else:
        is_whole = inner.model.byte_fallback and vocabulary >= _BYTE_TOKENS
        is_whole &= all(_keeps_characters(step) for step in normalizers)
    if not is_whole:
        return None
    contents = [token.content for token in added]
    longest = max(map(len, [*vocabulary, *(text.encode() if in_bytes else text for text in contents)]))
    return LengthBound(longest, in_bytes, inner.normalizer)


def _steps(component: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, those inside of sequences."""
    waiting = [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting.extend(step.get("normalizers") or step.get("pretokenizers") or [])
        else:
            yield step


def _keeps_characters(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == len(step["content"]) == 1
    return bool(step["type"] == "Prepend")
