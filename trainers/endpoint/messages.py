"""The messages of a chat, and the tools that its model may call, as OpenAI's clients send them."""

from __future__ import annotations

from typing import Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    """What a tool call calls, and with what: JSON, as the model wrote it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str
    arguments: str


class ToolCall(BaseModel):
    """One call of a tool that an earlier answer made."""

    model_config = ConfigDict(strict=True, extra="ignore")

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def as_template_wants(self) -> dict[str, Any]:
        """With its arguments as an object, which is what chat templates know; text where they are none."""
        try:
            arguments = orjson.loads(self.function.arguments)
        except orjson.JSONDecodeError:
            arguments = self.function.arguments
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    # Programs send back the messages they received, empty fields and all.
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's message has tool_calls")
        if self.content is None and not self.tool_calls:
            raise ValueError("the message has no content")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("a tool's message names the call it answers, in tool_call_id")
        return self

    @property
    def as_template_wants(self) -> dict[str, Any]:
        """Role, text and calls, as chat templates know them."""
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        wanted: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            wanted["tool_calls"] = [call.as_template_wants for call in self.tool_calls]
        if self.role == "tool":
            wanted["tool_call_id"] = self.tool_call_id
            if self.name is not None:
                wanted["name"] = self.name
        return wanted


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["function"]
    function: Function

    @property
    def as_template_wants(self) -> dict[str, Any]:
        """Without `strict`, which is a wish to whoever decodes and not for the model to read."""
        function = {
            "name": self.function.name,
            "description": self.function.description or "",
            "parameters": self.function.parameters or {"type": "object", "properties": {}},
        }
        return {"type": "function", "function": function}
