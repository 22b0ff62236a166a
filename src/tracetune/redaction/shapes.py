"""Secrets that are known by their shape: keys of services, tokens, and addresses with a password in them.

Each shape is declared once, as its fixed beginning and what follows. Every shape has one
rare character at a known place, by which a text without secrets is told at the cost of
looking for that character. What is replaced never contains a quote or a backslash, so a
text that is JSON stays JSON. `docs/tracing.md` shows the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

REDACTED = "[redacted]"

# A shape begins where no word goes on. In a text that is JSON, a word may end with an escape sequence.
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf])|(?<=\\u[0-9A-Fa-f]{4}))"
# What follows is no name in plain words, as in `sk-learn-contrib-models`: a letter beside a digit, or a long run.
# Bounded, so that no text makes a search take longer than it is long.
_RANDOM = r"(?=[\w-]{0,100}?(?:[0-9][A-Za-z]|[A-Za-z][0-9]|[A-Za-z0-9]{24}))"


@dataclass(frozen=True, slots=True)
class KeyShape:
    """Keys that begin alike.

    Attributes:
        service: whose they are.
        beginnings: fixed texts; all end with one rare character.
        least: how many characters follow at least.
        characters: what they are, as a character class.
        is_random: they must also look random, because plain words can begin so too.
    """

    service: str
    beginnings: tuple[str, ...]
    least: int
    characters: str = r"[A-Za-z0-9]"
    is_random: bool = False

    @property
    def mark(self) -> str:
        """The rare character that the beginnings end with."""
        return self.beginnings[0][-1]


_WORD = r"[\w-]"

KEY_SHAPES = (
    KeyShape("OpenAI, Anthropic, DeepSeek, OpenRouter, Langfuse", ("sk-",), 16, _WORD, is_random=True),
    KeyShape("GitLab", ("glpat-", "gldt-", "glrt-", "glptt-"), 16, _WORD, is_random=True),
    KeyShape("Slack", ("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"), 10, _WORD),
    KeyShape("PyPI", ("pypi-",), 16, _WORD, is_random=True),
    KeyShape("NVIDIA", ("nvapi-",), 30, _WORD),
    KeyShape("Perplexity", ("pplx-",), 30),
    KeyShape("xAI", ("xai-",), 30),
    KeyShape("Tavily", ("tvly-",), 20, _WORD, is_random=True),
    KeyShape("Google OAuth", ("GOCSPX-",), 20, _WORD),
    KeyShape("age", ("AGE-SECRET-KEY-",), 30),
    KeyShape("GitHub", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), 20),
    KeyShape("GitHub", ("github_pat_",), 20, r"\w"),
    KeyShape("Stripe", ("sk_live_", "sk_test_", "rk_live_", "rk_test_"), 16),
    KeyShape("Webhooks (Stripe, Svix, OpenAI)", ("whsec_",), 20, r"[A-Za-z0-9+/=]"),
    KeyShape("Hugging Face", ("hf_",), 30),
    KeyShape("npm", ("npm_",), 30),
    KeyShape("Groq", ("gsk_",), 30),
    KeyShape("Replicate", ("r8_",), 30),
    KeyShape("Pinecone", ("pcsk_",), 30, r"\w"),
    KeyShape("LangSmith", ("lsv2_pt_", "lsv2_sk_"), 30, r"\w"),
    KeyShape("Docker", ("dckr_pat_",), 20, _WORD),
    KeyShape("DigitalOcean", ("dop_v1_", "doo_v1_", "dor_v1_"), 40),
    KeyShape("Linear", ("lin_api_",), 30),
    KeyShape("Shopify", ("shpat_", "shpss_", "shpca_"), 30),
    KeyShape("Sentry", ("sntrys_", "sntryu_"), 30, r"[\w+/=]"),
    KeyShape("Supabase", ("sbp_",), 30),
)


@dataclass(frozen=True, slots=True)
class OtherShape:
    """A secret whose beginning is not fixed to the letter, or does not end with a rare character.

    Attributes:
        what: is recognised.
        example: how it looks; the part in angle brackets is replaced.
        mark: a rare character that each has.
        pattern: with a group for what stays.
    """

    what: str
    example: str
    mark: str
    pattern: str


OTHER_SHAPES = (
    OtherShape(
        "AWS key ids, Google keys", "AKIA<16 capitals and digits>, ASIA<…>, AIza<at least 30 characters>", "I",
        rf"(I(?:(?<={_START}AKI)A(?=[0-9A-Z]{{16}}(?![0-9A-Za-z]))|(?<={_START}ASI)A(?=[0-9A-Z]{{16}}(?![0-9A-Za-z]))|"
        rf"(?<={_START}AI)za(?=[\w-]{{30}})))[\w-]{{16,}}",
    ),
    OtherShape("JSON Web Tokens", "eyJ<…>.<…>.<…>", "J", rf"(J(?<={_START}eyJ))[\w-]{{5,}}\.[\w-]{{5,}}\.[\w-]{{5,}}"),
    OtherShape(
        "SendGrid", "SG.<22 characters>.<43 characters>", "G", rf"(G\.(?<={_START}SG\.))[\w-]{{16,}}\.[\w-]{{16,}}"
    ),
    OtherShape(
        "private keys in PEM", "-----BEGIN … PRIVATE KEY-----<…>", "V",
        # Up to its end, the end of the text, or the quote after it. Line ends may be escaped.
        r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,20}-----)"
        r"(?!\[redacted\])(?:[^\"'\\-]|\\+[A-Za-z]|-(?!----END))+(?:-----END [A-Z0-9 ]{0,60}-----)?",
    ),
    OtherShape(
        "bearer tokens", "Bearer <at least 16 characters, a digit among them>", "B",
        rf"(B(?<={_START}B)earer[ +]{{1,4}})(?=[\w.~+/-]{{0,200}}?[0-9])[\w.~+/-]{{16,}}=*",
    ),
    OtherShape(
        "passwords in addresses", "https://user:<password>@host", "@",
        r"(://[^\s/?#@:\"'\\<>${}\[\]]{0,200}:)[^\s/?#@\"'\\<>${}\[\]]{1,200}(?=@)",
    ),
    OtherShape(
        "webhooks of Slack and Discord",
        "https://hooks.slack.com/services/<…>, https://discord.com/api/webhooks/<…>", "/",
        r"(/(?:(?<=hooks\.slack\.com/)(?:services|workflows|triggers)|(?<=/api/)webhooks)/)[A-Za-z0-9][\w/-]{15,}",
    ),
)  # fmt: skip


def _key_pattern(shapes: list[KeyShape]) -> str:
    """All keys that are looked for by one character: it is matched first, and what stands before it is asked then."""
    mark = re.escape(shapes[0].mark)
    choices = []
    for shape in shapes:
        # The letters alone are asked first, because nearly always they differ.
        known = map(re.escape, shape.beginnings)
        before = "|".join(f"(?<={beginning})(?<={_START}{beginning})" for beginning in known)
        rest = f"{_RANDOM if shape.is_random else ''}{shape.characters}{{{shape.least},}}"
        choices.append(f"(?:{before}){rest}")
    least = min(shape.least for shape in shapes)
    return rf"({mark})(?=[\w+/=-]{{{least}}})(?:{'|'.join(choices)})"


_by_mark = groupby(sorted(KEY_SHAPES, key=attrgetter("mark")), key=attrgetter("mark"))

PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    *((mark, re.compile(_key_pattern(list(shapes)), re.ASCII)) for mark, shapes in _by_mark),
    *((shape.mark, re.compile(shape.pattern, re.ASCII)) for shape in OTHER_SHAPES),
)


def without_shapes(text: str) -> str:
    """A text without the secrets of known shapes; their fixed beginnings stay, and say what it was.

    Example:
        >>> without_shapes("Incorrect API key provided: sk-proj-4f9A2c77b1D0e6K3.")
        'Incorrect API key provided: sk-[redacted].'
    """
    for mark, pattern in PATTERNS:
        if mark in text:
            text = pattern.sub(rf"\1{REDACTED}", text)
    return text
