"""What type checkers must see of decorated functions; checked by `mypy --strict`, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, assert_type

import tracetune as tt


@tt.module
def plain(question: str, hops: int = 2) -> list[str]:
    return [question] * hops


@tt.program("named")
async def coroutine(question: str) -> int:
    return len(question)


@tt.module(key=lambda hop: str(hop))
def generator(hop: int) -> Iterator[str]:
    yield str(hop)


@tt.tool("stream", key=str)
async def async_generator(text: str) -> AsyncIterator[str]:
    yield text


class Agent:
    @tt.module
    def method(self, question: str) -> str:
        return question

    @tt.module
    @classmethod
    def of_class(cls, question: str) -> int:
        return len(question)

    @staticmethod
    @tt.module("static")
    def of_nothing(question: str) -> bytes:
        return question.encode()


assert_type(plain("q"), list[str])
assert_type(plain("q", hops=3), list[str])
coroutine_made = assert_type(coroutine("q"), Coroutine[Any, Any, int])
assert_type(generator(1), Iterator[str])
assert_type(async_generator("a"), AsyncIterator[str])
assert_type(Agent().method("q"), str)
assert_type(Agent.of_class("q"), int)
assert_type(Agent.of_nothing("q"), bytes)

plain(3)  # type: ignore[arg-type]
plain("q", hopps=3)  # type: ignore[call-arg]
Agent().method()  # type: ignore[call-arg]
tt.module(3)  # type: ignore[call-overload]

same: Callable[[str], int] = tt.module(len)
