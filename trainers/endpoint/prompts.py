"""From messages and texts to the exact tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

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
            ids = self._tokenizer.apply_chat_template(
                [message.as_template_wants for message in messages],
                tools=[tool.as_template_wants for tool in tools] or None,
                add_generation_prompt=True,
                return_dict=False,
            )
        except TemplateError as error:
            raise Problem(400, f"the model's chat template refused the messages: {error}", "messages") from None
        return tuple(ids)

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
        ids = tuple(self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
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

    def token_text(self, token: int) -> str:
        """One token, as text."""
        text = self._token_texts.get(token)
        if text is None:
            text = self._token_texts[token] = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        return text
