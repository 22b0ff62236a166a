"""What the endpoint answers when it can't answer: errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tracetune.redaction import redacted_repr


@dataclass(eq=False)
class Problem(Exception):
    """An error answer.

    Attributes:
        status: the HTTP status.
        message: what, where and what to do.
        param: the parameter of the request that it is about.
        code: a word that programs can tell it by.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer, without secrets: an address may have a password in it, and a server echo a key."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": redacted_repr(self.message), "type": kind, "param": self.param, "code": self.code}}
