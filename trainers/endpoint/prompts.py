"""From messages and texts to the exact tokens of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tracetune.trainers.endpoint.lengths import LengthBound, length_bound
from tracetune.trainers.endpoint.messages import Message, Tool
from tracetune.trainers.endpoint.problems import Problem
from tracetune.trainers.endpoint.tool_calls import ToolFormat, format_of


class Prompts:
    """The tokenizer's side of the endpoint.

    Args:
        tokenizer: the policy's own.
        context: how many tokens prompt and completion may have together.
        vocabulary: how many tokens the model knows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, context: int, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._context = context
        self._vocabulary = vocabulary
        self._token_texts: dict[int, str] = {}
        # Endpoints tokenise in several threads at once. The first call sets truncation and padding, which no other
        # call may see happen.
        self._tokenizer("")

    @cached_property
    def _bound(self) -> LengthBound | None:
        return length_bound(self._tokenizer)

    def of_chat(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """The tokens of a chat, up to where the assistant speaks.

        Raises:
            Problem: if the model has no chat template, or its template refuses the messages
                or does not show them whole.
        """
        if not self._tokenizer.chat_template:
            raise Problem(
                400,
                "the policy's model has no chat template; call /v1/completions, or set the tokenizer's chat_template",
                "messages",
                "no_chat_template",
            )
        template = self._template(tools)
        if tools and "tools" not in template:
            raise Problem(400, "the model's chat template shows it no tools; leave out 'tools'", "tools")
        if any(message.tool_calls for message in messages) and "tool_calls" not in template:
            raise Problem(400, "the model's chat template shows it no tool calls; leave out 'tool_calls'", "messages")
        try:
            text: Any = self._tokenizer.apply_chat_template(
                [message.as_template_wants for message in messages],
                tools=[tool.as_template_wants for tool in tools] or None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError as error:
            raise Problem(400, f"the model's chat template refused the messages: {error}", "messages") from None
        except Exception as error:  # noqa: BLE001 - a template runs code of its model's, on what the client sent
            message = f"the model's chat template can't show these messages ({type(error).__name__}: {error!s:.300})"
            raise Problem(400, f"{message}; send others", "messages", "invalid_value") from None
        self._check_length(text, "messages")
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def tool_format(self, tools: Sequence[Tool]) -> ToolFormat:
        """The form that the model writes its tool calls in."""
        return format_of(self._template(tools))

    def _template(self, tools: Sequence[Tool]) -> str:
        """The chat template that is used with these tools: some tokenizers have another one for them."""
        return str(self._tokenizer.get_chat_template(tools=[tool.as_template_wants for tool in tools] or None))

    def of_text(self, prompt: str | list[int]) -> tuple[int, ...]:
        """The tokens of a text, with what the tokenizer puts before it; token ids as they are.

        Raises:
            Problem: if there are none, or some are not the model's.
        """
        if isinstance(prompt, str):
            self._check_length(prompt, "prompt")
            ids = tuple(self._tokenizer.encode(prompt))
        else:
            self.room_after(prompt, "prompt")
            ids = tuple(prompt)
        if not ids:
            raise Problem(400, "'prompt' is empty; give it at least one token", "prompt")
        if not all(0 <= token < self._vocabulary for token in ids):
            raise Problem(400, f"'prompt' has token ids outside the model's 0 to {self._vocabulary - 1}", "prompt")
        return ids

    def room_after(self, prompt_ids: Sequence[int], param: str) -> int:
        """How many tokens may follow.

        Raises:
            Problem: if there is room for none.
        """
        room = self._context - len(prompt_ids)
        if room < 1:
            raise Problem(
                400,
                f"this model's maximum context length is {self._context} tokens, and the prompt alone has "
                f"{len(prompt_ids)}; shorten it to at most {self._context - 1}",
                param,
                "context_length_exceeded",
            )
        return room

    def check_size(self, values: Mapping[str, Any]) -> None:
        """Refuse lists of token ids that can't fit, before each id is looked at.

        Raises:
            Problem: if there is one.
        """
        prompt = values.get("prompt")
        if isinstance(prompt, list) and prompt:
            for ids in [prompt] if isinstance(prompt[0], int) else prompt:
                if isinstance(ids, list):
                    self.room_after(ids, "prompt")

    def _check_length(self, text: str, param: str) -> None:
        """Refuse a text that can't fit, before it is tokenised."""
        if len(text.encode()) <= self._context or self._bound is None:
            return
        fewest = self._bound.fewest_tokens(text)
        if fewest >= self._context:
            raise Problem(
                400,
                f"this model's maximum context length is {self._context} tokens, and {len(text)} characters are at "
                f"least {fewest}; shorten the prompt to at most {self._context - 1} tokens",
                param,
                "context_length_exceeded",
            )

    def token_text(self, token: int) -> str:
        """One token, as text."""
        text = self._token_texts.get(token)
        if text is None:
            text = self._token_texts[token] = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return text
