"""Text that grows token by token."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tracetune.trainers.endpoint.text import GrowingText

# Bytes of characters of one to four bytes: a token is one byte.
CHARACTERS = st.text(alphabet="ab é€😀 \n", max_size=30)


def decode_bytes(ids):
    """A tokenizer of bytes."""
    return bytes(ids).decode(errors="replace")


def decode_words(ids):
    """A tokenizer of words."""
    return " ".join("abcd"[token] for token in ids)


def grow(decode, ids, stop=()):
    """The pieces that a client gets, and the tokens that were used."""
    text, pieces, used = GrowingText(decode, stop), [], 0
    stopped = False
    for token in ids:
        used += 1
        stopped = text.add(token)
        if stopped:
            break
        pieces.append(text.take(finished=False))
    if not stopped:
        text.finish()
    pieces.append(text.take(finished=True))
    assert "".join(pieces) == text.text
    return text.text, used, pieces


@given(CHARACTERS)
def test_pieces_add_up_to_the_text(characters):
    """Characters of several tokens arrive whole, and nothing is lost or repeated."""
    text, _, pieces = grow(decode_bytes, characters.encode())
    assert text == characters
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 3), max_size=20))
def test_spaces_between_words_are_kept(ids):
    """A tokenizer that puts spaces between tokens gives the same text in pieces as at once."""
    assert grow(decode_words, ids)[0] == decode_words(ids)


def test_half_a_character_at_the_end_is_shown():
    """A completion cut in the middle of a character shows what a decoder shows."""
    assert grow(decode_bytes, "é".encode()[:1])[0] == "\ufffd"


@given(CHARACTERS, st.lists(st.text(alphabet="ab é€", min_size=1, max_size=3), min_size=1, max_size=4))
def test_a_stop_string_ends_the_text_before_it_and_never_shows(characters, stop):
    """The text ends before the first stop string to be completed, at the token that completes it."""
    text, used, _ = grow(decode_bytes, characters.encode(), tuple(stop))
    ends = [match.end() for string in stop for match in re.finditer(f"(?={re.escape(string)})", characters)]
    completed = [at + len(string) for string in stop if (at := characters.find(string)) >= 0]
    if not completed:
        assert not ends
        assert text == characters
    else:
        end = min(completed)
        assert used == len(characters[:end].encode())
        assert text == characters[: min(end - len(string) for string in stop if characters[:end].endswith(string))]
