"""What clients may ask: bodies of `/v1/chat/completions` and `/v1/completions`, read and refused.

Every parameter is either served, known to be harmless here, or refused by name: a
parameter that was quietly dropped would make a program's rollouts something else than
its author wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tracetune.trainers.endpoint.messages import Message, Tool
from tracetune.trainers.endpoint.problems import Problem

# Accepted and without effect: who asks, how it is billed, where it is cached.
_HARMLESS = frozenset({"user", "metadata", "service_tier", "prompt_cache_key", "safety_identifier"})
# Accepted only with values that ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "store": (None, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
}

AnyBody = TypeVar("AnyBody", bound="Body")

MAX_CHOICES = 128
MAX_PROMPTS = 128
MAX_STOP_CHARACTERS = 1000


class StreamOptions(BaseModel):
    """What a stream should also say."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class Body(BaseModel):
    """The parameters that both kinds of request have."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    temperature: float | None = Field(default=None, ge=0.0, le=2.0)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    top_k: int | None = Field(default=None, ge=-1)
    max_tokens: int | None = Field(default=None, ge=1)
    # 64 bits, as far as they go when each choice adds its index.
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63 - MAX_CHOICES)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings, empty ones left out.

        Raises:
            Problem: if there are more than four, or one is very long.
        """
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > 4:
            raise Problem(400, f"'stop' takes at most 4 strings, and this request has {len(strings)}", "stop")
        if any(len(string) > MAX_STOP_CHARACTERS for string in strings):
            # Each token is compared with every beginning of a stop string.
            message = f"a 'stop' string has at most {MAX_STOP_CHARACTERS} characters; shorten it"
            raise Problem(400, message, "stop", "invalid_value")
        return tuple(filter(None, strings))


class JsonSchema(BaseModel):
    """The schema that an answer must have."""

    model_config = ConfigDict(strict=True, extra="forbid", populate_by_name=True)

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What an answer must be: text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema stands beside the type json_schema, and beside no other")
        return self


class ChatBody(Body):
    """The body of a request to `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def answer_schema(self) -> Mapping[str, Any] | None:
        """The schema of JSON that the answer must have; None where it may be any text.

        Raises:
            Problem: if the model may also call tools, which are no such JSON.
        """
        if self.response_format is None or self.response_format.type == "text":
            return None
        if self.offered:
            raise Problem(
                400,
                "'response_format' leaves no room for tool calls; leave out 'tools' or set 'tool_choice' to none",
                "response_format",
            )
        wanted = self.response_format.json_schema
        return {"type": "object"} if wanted is None else wanted.schema_

    @property
    def alternatives(self) -> int:
        """How many alternatives to show for each token.

        Raises:
            Problem: if they are asked for without the log-probabilities that they belong to.
        """
        if self.top_logprobs and not self.logprobs:
            raise Problem(400, "'top_logprobs' needs 'logprobs': true beside it", "top_logprobs", "invalid_value")
        return self.top_logprobs or 0


class CompletionBody(Body):
    """The body of a request to `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One text or one list of token ids for each prompt.

        Raises:
            Problem: if there are none or too many.
        """
        prompt: Any = self.prompt
        if prompt == []:
            raise Problem(400, "'prompt' is empty; give it at least one token", "prompt", "invalid_value")
        prompts: Any = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
        if len(prompts) > MAX_PROMPTS:
            raise Problem(400, f"'prompt' holds {len(prompts)} prompts, and at most {MAX_PROMPTS} are taken", "prompt")
        return prompts  # type: ignore[no-any-return]  # pydantic has settled which of the two it is


def read_chat(values: Mapping[str, Any]) -> ChatBody:
    """A chat request.

    Raises:
        Problem: if it asks for what is not served, or for what makes no sense.
    """
    return _read(ChatBody, values)


def read_completion(values: Mapping[str, Any]) -> CompletionBody:
    """A plain completion request.

    Raises:
        Problem: likewise.
    """
    return _read(CompletionBody, values)


def _read(kind: type[AnyBody], values: Mapping[str, Any]) -> AnyBody:
    served = {}
    for name, value in values.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                message = f"the policy endpoint does not support '{name}' ({value!r:.60}); leave it out"
                raise Problem(400, message, name, "unsupported_parameter")
        elif name not in _HARMLESS:
            served[name] = value
    try:
        return kind.model_validate(served)
    except ValidationError as error:
        raise _problem(error) from None


def _problem(error: ValidationError) -> Problem:
    """The first thing that is wrong with a body, in OpenAI's shape."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        return Problem(
            400, f"the policy endpoint does not know the parameter '{name}'; leave it out", name, "unknown_parameter"
        )
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return Problem(400, f"the request has no '{name}'; it is required", name, "missing_required_parameter")
    where = ".".join(map(str, first["loc"]))
    return Problem(400, f"'{where}' can't be {first['input']!r:.60}: {first['msg']}", name, "invalid_value")
