"""Tool calls read out of a completion, in the form that the model was taught to write them.

There is no one form, and a checkpoint does not say which is its own, but its chat template
shows it: earlier calls are written into the prompt in the same form. What cannot be read
as calls stays text.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

# Special tokens of tokenizers that are part of what was said where a tool is called.
MARKERS = frozenset({"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>"})

_HERMES_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Called:
    """One call: the name of a tool, and its arguments as JSON."""

    name: str
    arguments: str

    def as_answered(self) -> Json:
        """As OpenAI's clients read it, under a new id."""
        # Mistral's templates take ids of exactly nine letters and digits; the others take any.
        call_id = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return {"id": call_id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A form of tool calls.

    Attributes:
        name: whose form it is.
        openings: what a call begins with.
        anywhere: whether it may begin after other text; else it is the whole completion.
        read: given a text and the names of the tools, the text without the calls, and the calls.
    """

    name: str
    openings: tuple[str, ...]
    anywhere: bool
    read: Callable[[str, Collection[str]], tuple[str, list[Called]]]

    def settled(self, text: str) -> int:
        """How much of a text that is still growing can't be part of a call, whatever follows.

        Example:
            >>> HERMES.settled("Let me see. <tool"), HERMES.settled("Let me see. <b>")
            (12, 15)
        """
        begins = text.lstrip()
        if not begins or not self.anywhere:
            may_be = any(begins.startswith(opening) or opening.startswith(begins) for opening in self.openings)
            return 0 if may_be else len(text)
        end = min(_where_it_may_begin(text, opening) for opening in self.openings)
        return end if text[:end].strip() else 0


def format_of(template: str) -> ToolFormat:
    """The form that a chat template writes calls in; bare JSON, Llama's, where it shows no other.

    Example:
        >>> format_of("{% for call in message.tool_calls %}<tool_call>{{ call }}</tool_call>{% endfor %}").name
        'hermes'
    """
    return next((form for form in (HERMES, MISTRAL) if form.openings[0] in template), LLAMA)


def _where_it_may_begin(text: str, opening: str) -> int:
    at = text.find(opening)
    if at >= 0:
        return at
    ends = (len(text) - size for size in range(len(opening) - 1, 0, -1) if text.endswith(opening[:size]))
    return next(ends, len(text))


def _read_hermes(text: str, names: Collection[str]) -> tuple[str, list[Called]]:
    """Any number of `<tool_call>{"name": …, "arguments": …}</tool_call>`, with text around them."""
    calls: list[Called] = []

    def take(block: re.Match[str]) -> str:
        found = _objects(block[1])
        if len(found) != 1:
            return block[0]
        calls.extend(found)
        return ""

    return _HERMES_BLOCK.sub(take, text), calls


def _read_mistral(text: str, names: Collection[str]) -> tuple[str, list[Called]]:
    """`[TOOL_CALLS] [{"name": …, "arguments": …}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each call."""
    said, *parts = text.split("[TOOL_CALLS]")
    calls: list[Called] = []
    for part in parts:
        name, found_arguments, arguments = part.partition("[ARGS]")
        if found_arguments:
            call = {"name": name.partition("[CALL_ID]")[0].strip(), "arguments": arguments}
            found = _objects(json.dumps(call))
        else:
            found = _objects(part)
        if not found:
            return text, []
        calls.extend(found)
    return said, calls


def _read_llama(text: str, names: Collection[str]) -> tuple[str, list[Called]]:
    """The whole text is `{"name": …, "parameters": …}`, or several of them with semicolons between."""
    stripped = text.strip()
    calls = _objects(stripped.removeprefix("<|python_tag|>"))
    # Without a marker, an object with a name is a call only where a tool has that name.
    marked = stripped.startswith("<|python_tag|>")
    if not calls or not (marked or all(call.name in names for call in calls)):
        return text, []
    return "", calls


def _objects(text: str) -> list[Called]:
    """The calls of which a text consists, bare, in a list, or with semicolons between; none where there is more."""
    found: list[Any] = []
    at = 0
    while rest := text[at:].lstrip(" \t\r\n;"):
        try:
            value, length = _DECODER.raw_decode(rest)
        except (json.JSONDecodeError, RecursionError):
            return []
        found += value if isinstance(value, list) else [value]
        at = len(text) - len(rest) + length
    calls = [_called(value) for value in found]
    return [call for call in calls if call is not None] if None not in calls else []


def _called(value: Any) -> Called | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (json.JSONDecodeError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    try:
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        f"{value['name']}{written}".encode()
    except (ValueError, RecursionError):  # NaN is no JSON, and half a character can't be sent
        return None
    return Called(value["name"], written)


HERMES = ToolFormat("hermes", ("<tool_call>",), True, _read_hermes)
MISTRAL = ToolFormat("mistral", ("[TOOL_CALLS]",), True, _read_mistral)
LLAMA = ToolFormat("llama", ("{", "<|python_tag|>"), False, _read_llama)


class ToolReader:
    """Reads the choices of one response, whole or as they grow.

    Args:
        form: how the model writes calls.
        names: the tools that it was offered.
        single: whether only the first call of a choice counts.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, single: bool) -> None:
        self._form = form
        self._names = names
        self._single = single
        self._texts: dict[int, str] = {}
        self._sent: dict[int, int] = {}

    def read(self, text: str, reason: str | None) -> tuple[str | None, Sequence[Json], str | None]:
        """Of a finished choice: what it says beside its calls, the calls, and why it ended."""
        said, calls = self._form.read(text, self._names)
        if not calls:
            return text, [], reason
        answered = [call.as_answered() for call in (calls[:1] if self._single else calls)]
        return said if said.strip() else None, answered, "tool_calls" if reason == "stop" else reason

    def delta(self, choice: int, piece: str, reason: str | None) -> tuple[Json, str | None]:
        """What a stream tells of a choice's newest piece, and why the choice ended, where it has."""
        text = self._texts[choice] = self._texts.get(choice, "") + piece
        sent = self._sent.get(choice, 0)
        delta: Json = {}
        if reason is None:
            said: str | None = text[: self._form.settled(text)]
        else:
            said, calls, reason = self.read(text, reason)
            if calls:
                delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
        if new := (said or "")[sent:]:
            delta["content"] = new
            self._sent[choice] = sent + len(new)
        return delta, reason
