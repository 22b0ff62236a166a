"""Programs and rewards that no thread survives, found by their names in processes of their own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import tracetune as tt
from tracetune.types import Example, Rollout


class Unpicklable(Exception):
    """An exception that cannot be made anew from its arguments."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def misbehave(word: str) -> None:
    """What the word says; any other word is passed over."""
    match word:
        case "regex":  # keeps the interpreter's lock for longer than anybody lives
            re.match(r"(a+)+$", "a" * 40 + "b")
        case "exit":
            os._exit(3)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "sys.exit":
            sys.exit(4)
        case "interrupt":
            raise KeyboardInterrupt
        case "error":
            raise LookupError("no such word")
        case "unpicklable error":
            raise Unpicklable(1, 2)
        case "format":
            raise tt.FormatError("no word")
        case "sleep":
            time.sleep(1000)


@tt.module
def say(word: str) -> str:
    """A module with one call, made in the rollout's policy."""
    tt.record_call(messages=[{"role": "user", "content": word}], completion=word.upper(), model=tt.policy().model)
    return word.upper()


@tt.program
def program(word: str) -> Any:
    """Says its word, then does what it says."""
    said = say(word)
    misbehave(word)
    return (lambda: said) if word == "unpicklable" else said


@tt.program
async def async_program(word: str) -> str:
    """The same, async."""
    await asyncio.sleep(0)
    said = say(word)
    misbehave(word)
    return said


@tt.program
def generator(word: str) -> Iterator[str]:
    """The same, as a generator."""
    for letter in word:
        yield say(letter)


@tt.program
async def async_generator(word: str) -> AsyncIterator[str]:
    """The same, as an async generator."""
    for letter in word:
        yield say(letter)


def undecorated(word: str) -> str:
    """A program that nobody has decorated."""
    return say(word)


def process(word: str) -> int:
    """A program that tells in which process it runs."""
    return os.getpid()


def reward(example: Example, output: Any, rollout: Rollout) -> tt.Score:
    """Does what the example's word says, then scores the output's length."""
    assert [call.completion for call in rollout.calls]
    tt.record_call(messages=[{"role": "user", "content": output}], completion="good", model="judge")
    misbehave(example.inputs["word"])
    return tt.Score(float(len(output)), feedback=f"in {os.getpid()}")


async def async_reward(example: Example, output: Any, rollout: Rollout) -> float:
    """The same, async."""
    await asyncio.sleep(0)
    return float(len(output))


def one(example: Example, output: Any, rollout: Rollout) -> float:
    """Scores whatever came."""
    return 1.0


def redact(text: str) -> str:
    """Leaves out what is secret."""
    return text.replace("secret", "***")
