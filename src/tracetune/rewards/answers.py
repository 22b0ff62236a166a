"""Answers of models, kept on disk: the same question is asked, and paid for, once.

One SQLite file, which any number of threads and processes may share. Within a process,
those who ask the same question at once wait for the first of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from tracetune.errors import InvalidInput
from tracetune.files import make_file

_VERSION = 1
_SCHEMA = "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID"


class AnswerCache:
    """The answers in one file.

    Raises:
        InvalidInput: if the file cannot be made, or is something else.

    Example:
        >>> cache = AnswerCache("answers.sqlite")
        >>> cache.answer({"model": "judge"}, lambda: "8"), cache.answer({"model": "judge"}, lambda: "9")
        ('8', '8')
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._asking: WeakValueDictionary[str, _Turn] = WeakValueDictionary()
        with suppress(OSError):  # SQLite says what is wrong with it
            make_file(self._path)
        with self._open() as connection:
            connection.execute(_SCHEMA)

    def answer(self, question: Mapping[str, Any], ask: Callable[[], str]) -> str:
        """The answer to a question: the one that is kept, or what `ask` gives, which is then kept.

        Args:
            question: everything that the answer depends on.
            ask: gives the answer; what it raises is passed on, and nothing is kept.
        """
        key = _key(question)
        with self._lock:
            turn = self._asking.setdefault(key, _Turn())
        with turn.lock:
            with self._open() as connection:
                kept = connection.execute("SELECT answer FROM answers WHERE question = ?", (key,)).fetchone()
            if kept is not None:
                return str(kept[0])
            answer = ask()
            with self._open() as connection:
                connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))
            return answer

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection for each use: none is carried into another thread, or over a fork.
        try:
            with closing(sqlite3.connect(self._path, timeout=60.0, isolation_level=None)) as connection:
                yield connection
        except sqlite3.Error as error:
            raise InvalidInput(f"{self._path} cannot be a cache of answers ({error}); name another file") from error


class _Turn:
    """Whose turn it is to ask a question; gone when nobody asks it any more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _key(question: Mapping[str, Any]) -> str:
    canonical = json.dumps({"version": _VERSION, **question}, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(canonical.encode()).hexdigest()
