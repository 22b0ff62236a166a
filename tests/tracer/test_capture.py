"""Captured values: bounded, without secrets, and never raising whatever they are."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tracetune import tracer
from tracetune.errors import TracetuneWarning
from tracetune.testing import span_tree
from tracetune.tracer import names
from tracetune.tracer.capture import Capture

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text().filter(lambda key: len(key) < 4), children),
    max_leaves=20,
)


class Hostile:
    """Can't even be shown."""

    def __repr__(self) -> str:
        """Raise."""
        raise RuntimeError("no")


@dataclasses.dataclass
class Point:
    """Known by its fields."""

    x: int
    token: str


class Colour(enum.Enum):
    """Known by its value."""

    RED = "red"


class Model(BaseModel):
    """Known by what it dumps."""

    x: int


def cyclic() -> list[Any]:
    """A list that holds itself."""
    items: list[Any] = [1]
    items.append(items)
    return items


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    items: list[Any] = []
    for _ in range(depth):
        items = [items]
    return items


@given(JSON)
def test_json_values_are_kept_as_they_are(value: Any) -> None:
    """What JSON can say is captured without loss, whichever way it goes."""
    assert json.loads(Capture().json(value)[0]) == value
    assert json.loads(Capture(redact=lambda text: text).json(value)[0]) == value


@given(JSON, st.integers(10, 200))
def test_shortened_values_are_json_within_their_budget(value: Any, limit: int) -> None:
    """A value that is too long becomes valid JSON of about the limit, and says so."""
    text, is_shortened = Capture().json(value, limit)
    json.loads(text)
    assert is_shortened or json.loads(text) == value
    assert len(text.encode()) <= limit + 40


@pytest.mark.parametrize(
    ("value", "captured"),
    [
        (float("nan"), "null"),
        (b"\xff\x00", '"<2 bytes>"'),
        (10**40, f'"{10**40}"'),
        ("\ud800", '"\\\\ud800"'),
        (Hostile(), '"<Hostile: RuntimeError while it was captured>"'),
        ([Hostile(), 1], '["<Hostile: RuntimeError while it was captured>",1]'),
        ({1: "a", None: "b"}, '{"1":"a","None":"b"}'),
        ({3}, "[3]"),
        (Point(1, "abc"), '{"x":1,"token":"[redacted]"}'),
        (Colour.RED, '"red"'),
        (Model(x=1), '{"x":1}'),
        ([{"at": dt.date(2026, 1, 1), "password": "x"}], '[{"at":"2026-01-01","password":"[redacted]"}]'),
        (Colour, "\"<enum 'Colour'>\""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_does_not_know(value: Any, captured: str) -> None:
    """Each is kept in a form that a reader understands."""
    assert Capture().json(value) == (captured, False)


@pytest.mark.parametrize(
    ("value", "captured"), [(cyclic(), '[1,"<cycle>"]'), (nested(500), None)], ids=["cycle", "deep"]
)
def test_values_without_an_end_are_cut(value: Any, captured: str | None) -> None:
    """A cycle, and what is nested too deeply, is cut and marked."""
    text, is_shortened = Capture().json(value)
    assert is_shortened
    assert captured in (None, text)


def test_long_values_keep_their_beginning() -> None:
    """Texts, lists and mappings are cut at the end, and stay what they are."""
    assert Capture().json("x" * 50, 12) == ('"' + "x" * 10 + '…"', True)
    assert Capture().json({"a": "x" * 50, "b": 1}, 12) == ('{"a":"xx…"}', True)


@pytest.mark.parametrize(
    "key",
    ["api_key", "OPENAI_API_KEY", "x-api-key", "apikey", "Authorization", "password", "access_token", "client-secret"],
)
def test_secrets_are_redacted_by_the_names_of_their_keys(key: str) -> None:
    """However the key is spelt, and however deep it stands."""
    assert Capture().json({"config": [{key: "s3cr3t"}]}) == (f'{{"config":[{{"{key}":"[redacted]"}}]}}', False)
    assert Capture().json({key: "s3cr3t"}) == (f'{{"{key}":"[redacted]"}}', False)


def test_words_that_only_sound_secret_are_kept() -> None:
    """`max_tokens` is no token, and a text may speak of passwords."""
    value = {"max_tokens": 3, "token_ids": [1], "text": 'the "password": it is a word'}
    assert Capture().json(value) == (json.dumps(value, separators=(",", ":")), False)


def test_the_redact_hook_sees_every_text(store: Path, spool: Path) -> None:
    """Arguments, results, messages, exceptions and feedback go through the hook before they are written."""

    @tracer.module
    def ask(card: str) -> str:
        tracer.record_call(messages=[{"role": "user", "content": f"pay with {card}"}], completion=f"paid with {card}")
        return f"done with {card}"

    @tracer.program
    def shop(card: str) -> None:
        ask(card)
        tracer.reward(1, feedback=f"used {card}")
        raise ValueError(f"kept {card}")

    with (
        tracer.recording(store, redact=lambda text: text.replace("xyz", "****")),
        pytest.raises(ValueError, match="visa-xyz"),
    ):
        shop("visa-xyz")
    (segment,) = spool.iterdir()
    assert "visa-xyz" not in segment.read_text()
    assert segment.read_text().count("****") >= 6


def test_a_hook_that_raises_lets_nothing_through(store: Path, spool: Path) -> None:
    """What the hook could not see is left out, and the program goes on."""

    @tracer.module
    def ask(card: str) -> str:
        return card

    with (
        tracer.recording(store, redact=lambda text: str(1 // 0)),
        pytest.warns(TracetuneWarning, match="redact function raised ZeroDivisionError"),
    ):
        assert ask("visa-xyz") == "visa-xyz"
    (node,) = span_tree(spool, attributes=(names.OUTPUT,))
    assert node["attributes"] == {names.OUTPUT: '"[redacted]"'}


def test_shortened_attributes_are_marked(store: Path, spool: Path) -> None:
    """A span says which of its attributes are not whole; an example id is the hash of the whole input."""

    @tracer.program
    def read(text: str) -> int:
        return len(text)

    with tracer.recording(store):
        read("x" * 100_000 + "a")
        read("x" * 100_000 + "b")
    first, second = span_tree(spool)
    assert first["attributes"][names.TRUNCATED] == [names.INPUT]
    assert first["attributes"][names.INPUT] == second["attributes"][names.INPUT]
    assert first["attributes"][names.EXAMPLE_ID] != second["attributes"][names.EXAMPLE_ID]


def test_hostile_arguments_change_nothing(store: Path) -> None:
    """A program gets its arguments and gives its result as without tracing, the same objects."""

    @tracer.program
    def identity(value: Any) -> Any:
        return value

    with tracer.recording(store) as recorded:
        for value in (Hostile(), cyclic(), nested(2000), float("nan"), b"\xff", object(), {Hostile(): 1}):
            assert identity(value) is value
    assert recorded.counts.spans == 7
