"""Names whose values are secret: of fields, keys, arguments, headers, variables and attributes.

A name counts by how it ends, whatever stands between its words: `api_key`, `X-Api-Key`,
`apiKey` and `OPENAI_API_KEY` are one ending. `docs/tracing.md` shows the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

# Only the end of a longer name is looked at: a key may be a whole document.
LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class SecretName:
    """One ending of the names that are secret.

    Attributes:
        words: in small letters, with blanks between them.
        is_certain: in a text, such a name is taken at its word; after the others only a value that looks random is
            replaced, because texts also speak of tokens and secrets.
        has_plural: whether the same with an `s` is secret too.
        is_whole_word: whether a longer word with this end is another word, as `oauth` is.
    """

    words: str
    is_certain: bool = True
    has_plural: bool = True
    is_whole_word: bool = False


SECRET_NAMES = (
    SecretName("api key"),
    SecretName("access key"),
    SecretName("secret key"),
    SecretName("private key"),
    SecretName("signing key"),
    SecretName("encryption key"),
    SecretName("account key"),
    SecretName("password"),
    SecretName("passwd", has_plural=False),
    SecretName("passphrase"),
    SecretName("pwd", has_plural=False),
    SecretName("access token"),
    SecretName("refresh token"),
    SecretName("auth token"),
    SecretName("bearer token"),
    SecretName("client secret"),
    SecretName("connection string"),
    SecretName("credential"),
    SecretName("authorization", is_certain=False, has_plural=False),
    SecretName("cookie", is_certain=False),
    SecretName("secret", is_certain=False),
    # `max_tokens` and `prompt_tokens` are counts.
    SecretName("token", is_certain=False, has_plural=False),
    SecretName("auth", is_certain=False, has_plural=False, is_whole_word=True),
)

# The working folder of a shell.
_OTHER_NAMES = ("PWD", "OLDPWD")

_SEPARATORS = str.maketrans("-. ", "___")


def _endings(names: tuple[SecretName, ...]) -> tuple[str, ...]:
    ends = []
    for name in names:
        joined = name.words.replace(" ", "")
        ends += [joined, f"{joined}s"] if name.has_plural else [joined]
    return tuple(ends)


_ENDINGS = _endings(tuple(name for name in SECRET_NAMES if not name.is_whole_word))
_CERTAIN = _endings(tuple(name for name in SECRET_NAMES if name.is_certain))
_WHOLE_WORDS = tuple(name.words for name in SECRET_NAMES if name.is_whole_word)
_AFTER_SEPARATORS = tuple(f"_{word}" for word in _WHOLE_WORDS)


def is_secret(name: str) -> bool:
    """Whether what stands under this name is secret: `api_key`, `X-Api-Key`, `access_token`, but not `max_tokens`.

    Example:
        >>> is_secret("OPENAI-API-KEY"), is_secret("max_tokens")
        (True, False)
    """
    return ends_secret(name[-LONGEST_NAME:])


@lru_cache(maxsize=4096)
def ends_secret(name: str) -> bool:
    """`is_secret` of a name that is no longer than `LONGEST_NAME`."""
    words = name.lower().translate(_SEPARATORS)
    return (
        words.replace("_", "").endswith(_ENDINGS) or words in _WHOLE_WORDS or words.endswith(_AFTER_SEPARATORS)
    ) and name not in _OTHER_NAMES


@lru_cache(maxsize=4096)
def is_certain(name: str) -> bool:
    """Whether such a name is taken at its word in a text."""
    return ends_secret(name) and name.lower().translate(_SEPARATORS).replace("_", "").endswith(_CERTAIN)
