"""What every adapter does with a package that it cannot rely on.

A package that was updated may have renamed one function of several. So `replace` reads every
original before it replaces anything, and a replacement that fails undoes those before it.
`attempt` records without breaking the program, whatever the package's objects have become.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from tracetune.errors import RolloutClosed
from tracetune.tracer import session
from tracetune.tracer.outcomes import exception_event

# Class or module, the name of a function in it, and what gives its replacement.
Patch = tuple[Any, str, Callable[[Any], Any]]


def replace(patches: Sequence[Patch]) -> Callable[[], None]:
    """Replace functions of classes and modules; gives the function that puts the originals back.

    Raises:
        AttributeError: if a function is not there; then nothing has been replaced.

    Example:
        >>> class Client:
        ...     def ask(self):
        ...         return "answer"
        >>> put_back = replace([(Client, "ask", lambda original: lambda self: original(self).upper())])
        >>> Client().ask()
        'ANSWER'
        >>> put_back()
        >>> Client().ask()
        'answer'
    """
    replacements = [(place, name, wrapped(getattr(place, name))) for place, name, wrapped in patches]
    undo = ExitStack()
    try:
        for place, name, replacement in replacements:
            undo.callback(_put_back, place, name, vars(place).get(name, _INHERITED))
            setattr(place, name, replacement)
    except BaseException:
        undo.close()
        raise
    return undo.close


_INHERITED = object()


def _put_back(place: Any, name: str, original: Any) -> None:
    if original is not _INHERITED:
        setattr(place, name, original)
    elif name in vars(place):
        delattr(place, name)


def attempt(what: str, act: Callable[..., Any], *arguments: Any) -> Any:
    """What `act` gives; None, with one warning for all of `what`, where it fails.

    A package of another version, or an object of the program's own, may be unlike what an
    adapter knows. The program asked for an answer, not for a record of its question.

    Args:
        what: the thing that is recorded, as the warning names it: "a request of openai".
        act: what records it.
        arguments: of `act`.

    Raises:
        RolloutClosed: if the rollout was closed from outside, and must call no model.
    """
    try:
        return act(*arguments)
    except RolloutClosed:
        raise
    except Exception as error:  # noqa: BLE001  see above
        if session.active is not None:
            event = exception_event(error)
            why = f"{event['exception.type']}: {event['exception.message']:.200}"
            session.active.warn_once(what, f"{what} could not be recorded ({why}); it went on without")
        return None
