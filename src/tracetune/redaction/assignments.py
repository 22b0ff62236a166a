r"""Secrets that a text says under their names: `"password": "…"`, `API_KEY=…`, `Authorization: Bearer …`.

A text is searched for the colons and equal signs that stand behind the end of such a name.
What is replaced has no quotes and no backslashes in it, so a text that is JSON stays JSON.
Program code also assigns to such names, so a value must look like a value: `docs/tracing.md`
says what does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tracetune.redaction.names import SECRET_NAMES, is_certain, is_secret
from tracetune.redaction.shapes import REDACTED

# The last three letters of every ending, and those of `key`, `sig` and `signature` in an address.
_ENDS = sorted(
    {name.words[-3:] for name in SECRET_NAMES}
    | {f"{name.words[-2:]}s" for name in SECRET_NAMES if name.has_plural}
    | {"sig", "ure"}
)


def _candidates(sign: str) -> re.Pattern[str]:
    """Finds a sign behind the end of a name: the sign first, and then, from quick to slow, what stands before it."""
    letters = "".join(rf"[{''.join(sorted(set(column)))}]" for column in zip(*_ENDS, strict=True))
    ends = "|".join(_ENDS)

    def behind(gap: str) -> str:
        return rf"(?<={letters}{gap}{sign})(?<=(?:{ends}){gap}{sign})"

    # Between a name and its sign stands nothing, a blank, or a quote. Before a quote that is escaped, the name is
    # asked for later: how often it is escaped is not known.
    quoted = "|".join([behind(r"[\"' ]"), behind(r"[\"'] "), rf"(?<=\\[\"']{sign})", rf"(?<=\\[\"'] {sign})"])
    pattern = rf"{sign}(?:(?<=[A-Za-z]{sign}){behind('')}|(?<=[\"' ]{sign})(?:{quoted}))"
    return re.compile(pattern, re.IGNORECASE | re.ASCII)


AT_COLON, AT_EQUALS = _candidates(":"), _candidates("=")

_LONGEST_BEFORE = 96
_NAME_BEFORE = re.compile(r"(\\{0,31}[\"']|)((?:[A-Za-z0-9_.-]{1,64} )?[A-Za-z0-9_.-]{1,64})\1 ?$")
# What a quoted value may be; it may be cut off by the end of the text.
_QUOTED = re.compile(r"\s{0,8}(?P<quote>\\{0,31}[\"'])(?P<value>[^\"'\\\r\n]{1,4096})(?:(?P=quote)|\Z)")
_IN_QUERY = re.compile(r"(?P<value>[^\s&#\"'\\<>{}$\[\]]{1,4096})")
_OF_HEADER = re.compile(
    r"\s{0,8}(?P<scheme>(?:bearer|basic|token|digest|apikey|negotiate) {1,4})(?P<value>[^\s\"'`\\<>{}$\[\],;]{6,4096})",
    re.IGNORECASE,
)
_OF_COOKIE = re.compile(
    r"\s{0,8}(?P<value>[\w.-]{1,128}=[^\s\"'`\\<>{}$\[\];]{4,4096}(?:; ?[^\r\n\"'\\<>{}$\[\]]{0,4096})?)"
)
# Possessive, so that a call is not taken for a shorter value.
_OF_VARIABLE = re.compile(r"(?P<value>[^\s\"'`\\<>(){}$\[\],;][^\s\"'`\\<>(){}$\[\];]{2,4095}+)(?![(\[{])")
_TO_LINE_END = re.compile(r"(?P<value>[^\s\"'`\\<>(){}$\[\],;#][^\r\n\"'`\\<>(){}$\[\];#]{2,4095})(?=[\r\n\\]|\Z)")
_IN_DSN = re.compile(r"(?P<value>[^\s\"'`\\<>(){}$\[\],;]{3,4096})(?=;|\Z)")
_BARE = re.compile(r"(?P<gap>\s{0,8})(?P<value>[^\s\"'`\\<>(){}$\[\],;|&]{6,4096}+)(?![(\[{])")

_LETTER, _DIGIT = re.compile(r"[A-Za-z]"), re.compile(r"[0-9]")
# Small letters before a capital, as base64 has them.
_MIXED = re.compile(r"[a-z][A-Z]")
_CODE_NAME = re.compile(r"[a-z_]+[a-z0-9]*(?:[_.][a-z0-9_.]+)+")
_PLACEHOLDER = re.compile(
    r"(?i)\[?redacted|\byour\b|your[_-]|x{4}|\*{3}|\.{3}|…|^(?:none|null|true|false|undefined|str|string|bytes|secretstr|"
    r"int|any|object|number|optional|password|passwd|token|secret|api_key|apikey|example|changeme|<.*)$"
)
_WORDS = re.compile(r"[^A-Za-z0-9]+")
# As long as this, a value that is no word stands for itself even beside an uncertain name.
_LONG = 16


def has_assignment(text: str) -> bool:
    """Whether a text says a secret under its name."""
    return next(_found(text), None) is not None


def without_assignments(text: str) -> str:
    """A text without the secrets that it says under their names.

    Example:
        >>> without_assignments("token = next(tokens)  # DB_PASSWORD=hunter2")
        'token = next(tokens)  # DB_PASSWORD=[redacted]'
    """
    kept, end = [], 0
    for first, last in _found(text):
        if first >= end:
            kept += [text[end:first], REDACTED]
            end = last
    return "".join([*kept, text[end:]]) if kept else text


def _found(text: str) -> Iterator[tuple[int, int]]:
    """Where the secrets stand, in order."""
    spots = []
    if ":" in text:
        spots += [match.start() for match in AT_COLON.finditer(text)]
    if "=" in text:
        spots += [match.start() for match in AT_EQUALS.finditer(text)]
    for spot in sorted(spots):
        match = _value_at(text, spot)
        if match is not None and _PLACEHOLDER.search(match["value"]) is None:
            yield match.span("value")


def _value_at(text: str, spot: int) -> re.Match[str] | None:
    """The secret behind the sign that stands at `spot`, if one does."""
    before = _NAME_BEFORE.search(text, max(0, spot - _LONGEST_BEFORE), spot)
    if before is None:
        return None
    name = before[2]
    if text[before.start(2) - 1 : before.start(2)] == "\\" and name[0] in "nrtbf":
        name = name[1:]  # the end of an escape sequence
    name = name if before[1] else _unquoted_name(name)
    sign, place = text[spot], spot + 1
    opening = text[before.end(2) - len(name) - 1 : before.end(2) - len(name)]
    if sign == "=" and opening in ("?", "&") and opening:
        return _query_value(text, name, place)
    if not is_secret(name):
        return None
    words = _WORDS.split(name.lower())
    certain = is_certain(name)
    if (quoted := _QUOTED.match(text, place)) is not None:
        value = quoted["value"]
        is_header = words[-1] in ("authorization", "cookie") and _is_credential(value.strip().rpartition(" ")[2])
        return quoted if certain or is_header or _is_random(value, _LONG) else None
    if words[-1] == "authorization" and (header := _OF_HEADER.match(text, place)) is not None:
        return header if _is_credential(header["value"]) else None
    if words[-1] == "cookie" and sign == ":":
        return _OF_COOKIE.match(text, place)
    if sign == "=" and name.isupper() and not before[0].endswith(" "):
        at_line_start = _begins_line(text, before.end(2) - len(name))
        return (_TO_LINE_END.match(text, place) if at_line_start else None) or _OF_VARIABLE.match(text, place)
    if sign == "=" and certain and opening == ";":
        return _IN_DSN.match(text, place)
    return _bare_value(text, sign, place, is_spaced=before[0].endswith(" "), certain=certain)


def _query_value(text: str, name: str, place: int) -> re.Match[str] | None:
    """The value of a parameter of an address."""
    value = _IN_QUERY.match(text, place)
    if value is None or is_secret(name):
        return value
    return value if name.lower() in ("key", "sig", "signature") and _is_random(value["value"], _LONG) else None


def _bare_value(text: str, sign: str, place: int, *, is_spaced: bool, certain: bool) -> re.Match[str] | None:
    """A value without quotes, where it looks like one and not like code."""
    bare = _BARE.match(text, place)
    if bare is None:
        return None
    value = bare["value"]
    # `name = value` is how code is written, and how files of settings are.
    least = 6 if certain and not (sign == "=" and (is_spaced or bare["gap"])) else _LONG
    return bare if _is_random(value, least) else None


def _unquoted_name(words: str) -> str:
    """The name at the end of plain words: `API key`, but of `the password` its last word alone."""
    last = words.rpartition(" ")[2]
    return last if is_secret(last) or not is_secret(words) else words


def _begins_line(text: str, place: int) -> bool:
    line = text[max(0, place - 16) : place]
    return line.removesuffix("export ")[-1:] in ("", "\n", "\r") or line.removesuffix("export ").endswith(
        ("\\n", "\\r")
    )


def _is_credential(value: str) -> bool:
    """Whether what stands after the scheme of an Authorization header is no word about it."""
    return _is_random(value, 6) or len(value) >= _LONG or _MIXED.search(value) is not None


def _is_random(value: str, least: int) -> bool:
    """Whether a value is no word, no name of code and no address."""
    return (
        len(value) >= least
        and _LETTER.search(value) is not None
        and _DIGIT.search(value) is not None
        and "://" not in value
        and " " not in value
        and _CODE_NAME.fullmatch(value) is None
    )
