"""Trainers by name: whoever installs an entry point in `tracetune.trainers` adds one."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from os import PathLike
from typing import Any

from tracetune.errors import InvalidInput, MissingDependency, UnknownTrainer
from tracetune.types import Trainer

_GROUP = "tracetune.trainers"


def trainer_names() -> list[str]:
    """The names of the trainers that are installed.

    Example:
        >>> "local" in trainer_names()
        True
    """
    return sorted({entry.name for entry in entry_points(group=_GROUP)})


def make_trainer(name: str, *, model: str | PathLike[str] | None = None, **settings: Any) -> Trainer:
    """A trainer by its name.

    Args:
        name: as an entry point of `tracetune.trainers` calls it.
        model: what it starts from, for trainers that need to be told.
        settings: of that trainer.

    Raises:
        UnknownTrainer: if none is installed under that name.
        MissingDependency: if it needs a package that is not installed.
        InvalidInput: if it cannot be made of these arguments.

    Example:
        >>> make_trainer("local", model="HuggingFaceTB/SmolLM2-135M-Instruct", kl=0.04)  # doctest: +SKIP
    """
    found = entry_points(group=_GROUP, name=name)
    if not found:
        raise UnknownTrainer(f'no trainer is called "{name}"; installed: {", ".join(trainer_names()) or "none"}.')
    try:
        kind = next(iter(found)).load()
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f'the trainer "{name}" needs {error.name}; install it with pip install "tracetune[{name}]".'
        ) from error
    try:
        inspect.signature(kind).bind(*_given(model), **settings)
    except TypeError as error:
        raise InvalidInput(f'the trainer "{name}" cannot be made so: {error}; see its documentation.') from error
    trainer: Trainer = kind(*_given(model), **settings)
    return trainer


def _given(model: str | PathLike[str] | None) -> list[str | PathLike[str]]:
    return [] if model is None else [model]
