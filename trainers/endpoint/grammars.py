"""Completions that must be JSON of a given schema, by llguidance, which only this file knows.

Before each token the grammar says which ones may follow, and all others are ruled out; the
log-probabilities that are recorded are those of what is left. Not the policy's own, then:
a trainer that computed them again without the grammar would find others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tracetune.trainers.endpoint.problems import Problem

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class Constraint:
    """What a grammar lets one row say, token by token.

    Attributes:
        failure: why the grammar can't go on, where it became too large.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self.failure: str | None = None
        self._matcher = matcher

    def rule_out(self, logits_V: torch.Tensor) -> None:
        """Rule out, in place, the tokens that may not follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            self.failure = self._matcher.get_error()
            return
        allowed_V = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(logits_V)].astype(bool))
        # A model may know more tokens than its tokenizer; none of those is ever text.
        logits_V[len(allowed_V) :] = -torch.inf
        logits_V[: len(allowed_V)].masked_fill_(~allowed_V.to(logits_V.device), -torch.inf)

    def accept(self, token: int) -> None:
        """Take note of the token that was drawn."""
        self._matcher.consume_token(token)


class Grammars:
    """Makes grammars of what clients ask for.

    Args:
        tokenizer: the policy's own.
        end_tokens: what may follow when the JSON is whole, and nothing else then.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = sorted(end_tokens)
        self._known: LLTokenizer | None = None
        self._making = Lock()

    def of_schema(self, schema: Mapping[str, Any]) -> str:
        """The grammar of JSON that a schema describes.

        Raises:
            Problem: if llguidance is not installed, the tokenizer or the model is of a kind
                that can't be constrained, or the schema asks for what can't be ensured.
        """
        if find_spec("llguidance") is None:
            raise _refused("response_format needs llguidance; install tracetune[structured]")
        if not isinstance(self._tokenizer, PreTrainedTokenizerFast) or not self._end_tokens:
            raise _refused("the policy's tokenizer can't be constrained; leave out 'response_format'")
        from llguidance import LLMatcher

        # Without white space of its own choice, which a model could go on with for ever.
        compact: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=compact)
        except ValueError as error:
            raise _refused(f"'response_format' has no usable schema: {error}") from None
        is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, self._tokens())
        if is_error:
            raise _refused(f"'response_format' has a schema that can't be ensured: {messages[0]:.300}")
        return grammar

    def constraint(self, grammar: str) -> Constraint:
        """The constraint of one row.

        Raises:
            Problem: if the grammar cannot even begin.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens(), grammar, log_level=0)
        matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused(f"'response_format' has a schema that can't be ensured: {_first_line(matcher.get_error())}")
        return Constraint(matcher)

    def _tokens(self) -> LLTokenizer:
        """The tokenizer as llguidance has it: made once, in about a second for a large vocabulary."""
        from llguidance.hf import from_tokenizer

        with self._making:
            if self._known is None:
                assert isinstance(self._tokenizer, PreTrainedTokenizerFast)  # asked before
                try:
                    self._known = from_tokenizer(self._tokenizer, eos_token=self._end_tokens)
                except Exception as error:  # noqa: BLE001 - it says in many ways that it knows no such tokenizer
                    raise _refused(
                        f"llguidance can't read the policy's tokenizer ({error!s:.200}); leave out 'response_format' "
                        "and ask for JSON in the prompt"
                    ) from None
            return self._known


def _first_line(error: str) -> str:
    return error.strip().partition("\n")[0][:300]


def _refused(message: str) -> Problem:
    return Problem(400, message, "response_format", "unsupported_response_format")
