"""Every error that tracetune raises, in one tree.

A message says what went wrong, where, and what to do about it, in one sentence that
a tired person can act on. Catch `TracetuneError` to catch them all. Errors of the
program being traced are never wrapped: they reach the caller as they were raised.
"""

from __future__ import annotations


def _without_secrets(args: tuple[object, ...]) -> list[object]:
    # Imported here, so that `import tracetune` does not wait for the patterns.
    from tracetune.redaction import redacted_repr

    return [redacted_repr(said) if isinstance(said, str) else said for said in args]


class TracetuneError(Exception):
    """The root of the tree; what it says has no secrets in it, although it may quote a value or a service's answer."""

    def __init__(self, *args: object) -> None:
        super().__init__(*_without_secrets(args))


class FormatError(TracetuneError, ValueError):
    """A completion could not be parsed: raise it in a program when a module's text has the wrong form.

    The rollout ends with status `format_error` and every call it made, the failing one
    included, earns `Grouping.format_reward` in place of the reward.

    Example:
        >>> raise FormatError("no 'Answer:' line in the completion")
        Traceback (most recent call last):
        ...
        tracetune.errors.FormatError: no 'Answer:' line in the completion
    """


class RolloutClosed(TracetuneError):
    """A language model was called by a rollout that has already been closed, after a timeout say."""


class InvalidInput(TracetuneError, ValueError):
    """An argument, a row or a file that cannot be used; nothing was changed."""


class InvalidReward(InvalidInput):
    """A reward that is not a finite number."""


class MissingDependency(TracetuneError, ImportError):
    """A feature needs a package that is not installed; the message names the extra that brings it."""


class UnsupportedSystem(TracetuneError, ImportError):
    """This operating system has no file locks that tracetune can use."""


class StoreError(TracetuneError):
    """Something is wrong with a store or its spool."""


class StoreLocked(StoreError):
    """Another process holds the store; the message says which, and how to wait for it."""


class StoreNotFound(StoreError):
    """There is no store at that path."""


class StoreVersionError(StoreError):
    """The file was written by a newer tracetune, or is not a tracetune store."""


class QueryError(StoreError):
    """The store refused a query; the message has DuckDB's reason."""


class QueryLimitReached(QueryError):
    """A query took longer, or its answer was larger, than its limits allow."""


class UnknownId(StoreError, KeyError):
    """A rollout or call id that the store does not hold."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes.
        return str(self.args[0]) if self.args else ""


class ReceiverError(TracetuneError):
    """The receiver of traces could not start."""


class ExportError(TracetuneError):
    """What was sent was not taken; the message has the server's reason."""


class JudgeError(TracetuneError):
    """A model that judges gave no score: it could not be asked, or never answered in the asked form."""


class TrainerError(TracetuneError):
    """Something is wrong with a trainer or what it was given."""


class IsolationError(TracetuneError):
    """A program or reward cannot run in a process of its own, or that process has ended."""


class UnknownTrainer(TrainerError):
    """No trainer is installed under that name."""


class NoCompletions(TrainerError):
    """A training step made calls and none of them reached the policy endpoint."""


class RolloutsFailed(TrainerError):
    """Every rollout of the first step crashed, or none could be scored; its cause is the first of the errors."""


class ModelNotFound(TrainerError):
    """A model path or id that holds no model."""


class CheckpointError(TrainerError):
    """A checkpoint that is incomplete, or that belongs to other settings."""


class EndpointError(TrainerError):
    """The policy endpoint could not start or has stopped."""


class TracetuneWarning(UserWarning):
    """Something that was not done as asked; it never stops the program that is being traced or trained."""

    def __init__(self, *args: object) -> None:
        super().__init__(*_without_secrets(args))
