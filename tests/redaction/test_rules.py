"""The rules by which secrets are recognised: what they replace, what they leave alone, and what is said of them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redaction.harmless_texts import HARMLESS
from redaction.planted_secrets import NAMED, SHAPED

from tracetune.redaction import (
    KEY_SHAPES,
    OTHER_SHAPES,
    REDACTED,
    SECRET_NAMES,
    is_clean,
    is_secret,
    redacted_json,
    redacted_repr,
    redacted_text,
    redacted_value,
)
from tracetune.tracer.capture import Capture

# Pieces that are near to secrets, so that texts made of them meet many rules at once.
PIECES = st.sampled_from(
    [
        *(text for text, _ in SHAPED.values()), *HARMLESS, *NAMED,
        "sk-", "ghp_", "://", "@", ":", "=", '"', "\\", "'", "\n", "Bearer ",
        "-----BEGIN PRIVATE KEY-----", "{", "}", "[", "]", ",", " ", "a1B2c3d4", "password", "token",
        "Cookie:",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join)
JSON = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(-5, 5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(list(NAMED)), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_there_are_a_hundred_harmless_texts() -> None:
    """Each of its own."""
    assert len(set(HARMLESS)) == len(HARMLESS) >= 100


@pytest.mark.parametrize("text", HARMLESS)
def test_a_harmless_text_is_kept_byte_for_byte(text: str) -> None:
    """As a value, in a structure, in a message and by itself; nothing is marked."""
    assert (redacted_text(text), is_clean(text)) == (text, True)
    for value in (text, [text], {"text": text}, {"messages": [{"role": "user", "content": text}]}):
        assert json.loads(Capture().json(value)[0]) == value
        kept = Capture().messages([value])
        assert (json.loads(kept.text), kept.is_redacted) == ([value], False)


@pytest.mark.parametrize("name", SHAPED)
def test_a_secret_is_replaced_wherever_it_stands(name: str) -> None:
    """Alone, in a sentence, in JSON in JSON, in what an object or an exception shows."""
    text, secret = SHAPED[name]
    nested = json.dumps(json.dumps({"text": f"line\n{text}"}))
    for said in (text, f"use {text} now", json.dumps({"text": text}), nested):
        assert secret not in redacted_text(said)
        assert secret not in redacted_json(said)
        assert secret not in redacted_repr(repr(said))


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_recognised_however_it_is_spelt(name: str) -> None:
    """The word that ends a name counts, not its case nor what stands between its parts."""
    for spelt in (name, name.upper(), name.replace("_", "-"), f"my_{name}", f"x.{name}"):
        assert is_secret(spelt)


@pytest.mark.parametrize(
    "name",
    ["max_tokens", "tokens", "prompt_tokens", "author", "authority", "oauth", "public_key", "primary_key", "monkey",
     "password_reset_url", "cookie_recipe", "keyboard", "token_ids", "secretary", "PWD", "author_id"],
)  # fmt: skip
def test_other_names_are_not(name: str) -> None:
    """Counts, people and words that only begin alike."""
    assert not is_secret(name)


@pytest.mark.parametrize(
    "value",
    [
        {"token": None, "cookie": True, "secret": False},
        [["password", 1], ["Accept", "text/html"]],
        {"name": "x", "value": "y"},
    ],
)
def test_what_says_nothing_is_kept(value: object) -> None:
    """True, false and null are no secrets, and a list of two is not always a header."""
    assert json.loads(Capture().json(value)[0]) == value


@given(TEXTS)
def test_what_was_gone_over_once_stays_as_it_is(text: str) -> None:
    """Each rule gives a text that it leaves alone the second time."""
    for rule in (redacted_text, redacted_json, redacted_repr):
        once = rule(text)
        assert rule(once) == once


@given(TEXTS)
def test_a_text_without_a_secret_is_never_changed(text: str) -> None:
    """What the quick look calls clean is given back as it is; all else is changed, or holds a placeholder."""
    assert (redacted_text(text) == text) == is_clean(text) or REDACTED in text
    assert not is_clean(text) or redacted_text(text) is text


@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "Z"])))
def test_words_and_numbers_are_never_changed(text: str) -> None:
    """Without a sign, a text holds no secret but a key id of AWS or Google, which has a digit in capitals."""
    if not re.search(r"A[KS]IA|AIza|Bearer", text):
        assert redacted_text(text) == text


@given(JSON)
def test_json_stays_json(value: object) -> None:
    """The JSON of any value, and that again as a text in JSON, can be read after redaction, and has the same shape."""
    text = json.dumps(value)
    for said in (text, json.dumps({"body": text}), json.dumps(json.dumps({"body": text}))):
        json.loads(redacted_text(said))
    json.loads(Capture().json(value)[0])
    json.loads(Capture().json({"body": text})[0])
    json.loads(Capture().messages([{"role": "user", "content": text}]).text)
    assert json.loads(json.dumps(redacted_value(value))) == redacted_value(value)


@pytest.mark.parametrize(
    "text",
    ["sk-" * 200_000, "password=" * 100_000, "://a:" * 150_000, "-----BEGIN PRIVATE KEY-----" * 30_000,
     "\\" * 500_000 + '":', "eyJ" * 200_000, "eyJaaaaa." * 60_000, '"token": ' * 60_000,
     "Bearer " * 90_000, "=" * 500_000, "a_" * 250_000],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    """Half a megabyte of beginnings of secrets is gone over in time that grows with its length alone."""
    started = time.thread_time()
    redacted_text(text)
    redacted_repr(text)
    whole = time.thread_time() - started
    assert whole < 20


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_documentation_shows_the_tables(repository: Path) -> None:
    """docs/tracing.md has every name and every shape, as the code declares them, and no others."""
    text = (repository / "docs" / "tracing.md").read_text(encoding="utf-8")
    rows = [_cells(line) for line in text.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row[1:] in (["yes"], ["where the value looks random"])] == [
        [
            ", ".join(f"`{word}`" for word in ((name.words, f"{name.words}s") if name.has_plural else (name.words,)))
            + (" as a word of its own" if name.is_whole_word else ""),
            "yes" if name.is_certain else "where the value looks random",
        ]
        for name in SECRET_NAMES
    ]
    shapes = [
        [
            shape.service,
            f"{', '.join(f'`{start}`' for start in shape.beginnings)} and at least {shape.least} characters",
        ]
        for shape in KEY_SHAPES
    ]
    others = [[shape.what, f"`{shape.example}`"] for shape in OTHER_SHAPES]
    start = rows.index(["whose, or what", "how it looks"])
    assert rows[start + 2 : start + 2 + len(shapes) + len(others)] == shapes + others
