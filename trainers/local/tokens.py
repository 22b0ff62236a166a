"""The tokens of a member: those that were sampled, or those that the policy's tokenizer makes of the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from tracetune.types import Member


@dataclass(frozen=True, slots=True)
class MemberTokens:
    """A prompt and a completion.

    Attributes:
        exact: whether the completion's are the tokens that were sampled. Others have no
            log-probabilities that could have been recorded.
    """

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    exact: bool


class MemberTokeniser:
    """Gives members' tokens.

    A member whose text alone is known is tokenised by the policy's own chat template; its
    completion ends with the end token where it stopped by itself. So is a teacher's, where
    its tokens are of another vocabulary than the policy's.

    Args:
        tokenizer: the policy's; None where members are known by their tokens alone.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def tokens_of(self, member: Member) -> MemberTokens | None:
        """The member's tokens, or None where nobody can say what they are."""
        if member.prompt_ids is not None and member.completion_ids is not None and self._reads(member):
            return MemberTokens(member.prompt_ids, member.completion_ids, exact=True)
        if member.is_redacted:  # its text is not what was read or written
            return None
        tokenizer = self._tokenizer
        if tokenizer is None or not member.messages or not tokenizer.chat_template:
            return None
        if member.tool_calls:  # the form in which they were written is not known, and the text is not all there was
            return None
        try:
            prompt = tokenizer.apply_chat_template(list(member.messages), add_generation_prompt=True, tokenize=False)
        except TemplateError:  # the template refuses a role or an order that another model was fine with
            return None
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        completion_ids = tokenizer(member.text, add_special_tokens=False)["input_ids"]
        if member.finish_reason == "stop" and tokenizer.eos_token_id is not None:
            completion_ids = [*completion_ids, tokenizer.eos_token_id]
        return MemberTokens(prompt_ids, completion_ids, exact=False)

    def _reads(self, member: Member) -> bool:
        """Whether the member's tokens are of the policy's vocabulary: a teacher's may be of its own."""
        if member.teacher is None or self._tokenizer is None:
            return True
        try:
            read = self._tokenizer.decode(list(member.completion_ids or ()), clean_up_tokenization_spaces=False)
        except (IndexError, KeyError, OverflowError, TypeError):  # a token that the vocabulary does not have
            return False
        names = [str(call.get("function", {}).get("name", "")) for call in member.tool_calls]
        return all(part in read for part in (member.text.strip(), *names))
