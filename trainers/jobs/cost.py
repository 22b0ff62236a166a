"""What a job will cost, as well as that can be told beforehand, and whether to go ahead.

Services count tokens with tokenizers of their own. Four bytes of text a token is right to
a fifth or so for English; it is said to be about.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tracetune.errors import TrainerError

PRICES_PER_MILLION = {
    "gpt-4.1": 25.0,
    "gpt-4.1-mini": 5.0,
    "gpt-4.1-nano": 1.5,
    "gpt-4o": 25.0,
    "gpt-4o-mini": 3.0,
}
"""US dollars for a million trained tokens, by OpenAI's price list of 2025; `price_per_million` overrules it."""

_BYTES_A_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Estimate:
    """A job's size and price.

    Attributes:
        tokens: of one pass over the rows.
        price_per_million: US dollars; None where it is not known.

    Example:
        >>> print(Estimate(rows=40, tokens=12_000, epochs=3, price_per_million=5.0))
        40 rows of about 12,000 tokens x 3 epochs, about $0.18 at $5.00 a million
    """

    rows: int
    tokens: int
    epochs: int
    price_per_million: float | None

    def __str__(self) -> str:
        size = f"{self.rows} rows of about {self.tokens:,} tokens x {self.epochs} epochs"
        if self.price_per_million is None:
            return f"{size}, at a price that is not known here"
        cost = self.tokens * self.epochs * self.price_per_million / 1e6
        return f"{size}, about ${cost:.2f} at ${self.price_per_million:.2f} a million"


def tokens_of(content: bytes) -> int:
    """About how many tokens a file of rows has.

    Example:
        >>> tokens_of(b'{"messages": []}')
        4
    """
    return -(-len(content) // _BYTES_A_TOKEN)


def price_of(model: str) -> float | None:
    """What a million trained tokens of a model cost by the table above, or None.

    Example:
        >>> price_of("ft:gpt-4.1-nano-2025-04-14:acme::abc"), price_of("another")
        (1.5, None)
    """
    name = model.removeprefix("ft:").partition(":")[0]
    known = [base for base in PRICES_PER_MILLION if name == base or name.startswith(f"{base}-20")]
    return PRICES_PER_MILLION[known[0]] if known else None


def confirm(offer: str) -> None:
    """Ask a person at the terminal whether to go ahead.

    Raises:
        TrainerError: if the answer is not yes, or nobody is there to be asked.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise TrainerError(f"nobody is here to confirm {offer}; pass yes=True to go ahead without being asked")
    print(f"{offer}. Upload and start it? [y/N]", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise TrainerError(f"{offer} was declined, and nothing was uploaded; resume the run to be asked again")
