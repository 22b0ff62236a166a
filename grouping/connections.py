"""One DuckDB connection for one call: who may open the file, and what to say when nobody may.

DuckDB lets one process write, or several read. A connection is opened for one call and
closed after it, so its lock lives as long. Threads of this process take turns; another
process is waited for.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from tracetune.errors import InvalidInput, StoreError, StoreLocked, StoreNotFound, StoreVersionError
from tracetune.grouping.private_files import (
    make_database,
    make_spill_folder,
    quoted,
    remove_spill_folder,
    spill_folder,
)
from tracetune.grouping.troubles import remedy
from tracetune.tracer.warn import warn

_HOLDER = re.compile(r"Conflicting lock is held in (?P<command>.*?)\s*\(PID (?P<pid>\d+)\)", re.DOTALL)
_SIZE = re.compile(r"\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT])(?P<binary>i?)B\s*", re.IGNORECASE)
_POLL_SECONDS = 0.02
# Whoever waits longer than this is told whom for.
_SILENT_SECONDS = 10.0
# Where what DuckDB uses on disk is bounded, so many times what it may use in memory.
_SPILL = 4
# Rows that are written are compressed a group at a time, on one core each: texts are long, and small groups
# keep all cores busy.
ROW_GROUP_ROWS = 24_576
# The first format that knows zstd, so that every DuckDB since 1.2 can read the files.
FORMAT = f"STORAGE_VERSION 'v1.2.0', ROW_GROUP_SIZE {ROW_GROUP_ROWS}"
Config = dict[str, str | bool | int | float | list[str]]
"""Settings of DuckDB, as `duckdb.connect` takes them."""

_turns: dict[Path, threading.RLock] = {}
_turns_lock = threading.Lock()


@contextmanager
def connected(
    path: Path,
    *,
    read_only: bool,
    closed_off: bool,
    wait: float,
    memory_limit: str,
    temporary_folder: Path | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a store's file, closed at the end of the block.

    Args:
        path: the file; it is made where it is missing and may be written.
        read_only: whether to open it for reading alone.
        closed_off: whether queries see the store and nothing else: they neither read nor write
            other files, load no extension and change no setting.
        wait: seconds to wait for another process that holds it.
        memory_limit: as DuckDB writes it: "4GB". Beyond it DuckDB works on disk.
        temporary_folder: where DuckDB works on disk, to a bound, while it reads; by default in `<path>.tmp`
            and without a bound.

    Raises:
        StoreLocked: if another process still holds the file after `wait` seconds, or this one
            has it open otherwise.
        StoreNotFound: if it is to be read and is not there, or its folder is missing.
        StoreVersionError: if it is not a DuckDB file.
    """
    spill = spill_folder(path if temporary_folder is None else temporary_folder / path.name)
    config: Config = {"temp_directory": str(spill)}
    if temporary_folder is not None:
        config["max_temp_directory_size"] = f"{_SPILL * bytes_of(memory_limit)}B"
    with turn(path):
        connection = _connect(path, spill, config if read_only else None, wait=wait)
        try:
            make_spill_folder(spill, is_alone=not read_only)
            connection.execute("SET memory_limit = ?", [memory_limit])
            # DuckDB draws one on stdout, among the data, wherever Python has no script: in `python -c`, a notebook.
            connection.execute("SET enable_progress_bar = false")
            if closed_off:
                # DuckDB's read-only mode guards the file alone: COPY TO, read_csv and ATTACH reach all others.
                connection.execute("SET enable_external_access = false")
                connection.execute("SET lock_configuration = true")
            yield connection
        finally:
            connection.close()
            remove_spill_folder(spill)


def turn(path: Path) -> threading.RLock:
    """The lock by which the threads of this process take turns at a store."""
    with _turns_lock:
        return _turns.setdefault(path.resolve(), threading.RLock())


def _connect(path: Path, spill: Path, config: Config | None, *, wait: float) -> duckdb.DuckDBPyConnection:
    """A connection that reads, with that configuration; one that writes where there is none."""
    started = time.monotonic()
    is_told = False
    while True:
        file = _inode(path)
        try:
            connection = _writing(path, spill) if config is None else _reading(path, config)
        except duckdb.IOException as error:
            message = str(error)
            if "Could not set lock" not in message:
                raise _unreadable(path, message, is_read=config is not None) from error
            waited = time.monotonic() - started
            if waited >= wait:
                raise StoreLocked(_held(path, message, wait)) from error
            if waited >= _SILENT_SECONDS and not is_told:
                is_told = True
                warn(f"{path} is held by {_holder(message)}; it is waited for, up to {wait:g} s")
            time.sleep(_POLL_SECONDS)
        except (duckdb.ConnectionException, duckdb.BinderException) as error:
            raise StoreLocked(
                f"{path} is open in this process, by a duckdb.connect of its own; close that connection"
            ) from error
        else:
            if file is not None and file != _inode(path):
                connection.close()  # a compacted one took its place while it was being opened
                continue
            return connection


def _reading(path: Path, config: Config) -> duckdb.DuckDBPyConnection:
    # DuckDB shares one database among the connections of a process that have one configuration. No other
    # connection has this temporary folder, so what is set later is set for this connection alone.
    return duckdb.connect(path, read_only=True, config=config)


def _writing(path: Path, spill: Path) -> duckdb.DuckDBPyConnection:
    # Attached, because the size of row groups can be given in no other way.
    connection = duckdb.connect()
    try:
        # Before anything that may take long: DuckDB draws the bar on stdout, among the data.
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET temp_directory = ?", [str(spill)])
        # A connection is closed after its call, and all is written into the file then: rather at each commit, and
        # never into a write-ahead log first, which DuckDB would let everybody read. One that is there is replayed.
        connection.execute("SET checkpoint_threshold = '0KB'")
        if not is_begun(path):
            _remove_empty(path)
            make_database(connection, path, FORMAT)
        connection.execute(f"ATTACH {quoted(path)} AS store ({FORMAT}, RECOVERY_MODE 'no_wal_writes')")
        connection.execute("USE store")
    except BaseException:
        connection.close()
        raise
    return connection


def bytes_of(size: str, name: str = "memory_limit") -> int:
    """A size as DuckDB writes it, in bytes.

    Args:
        size: such as "4GB".
        name: of the setting, for the error.

    Raises:
        InvalidInput: if it is none.

    Example:
        >>> bytes_of("512MiB")
        536870912
    """
    found = _SIZE.fullmatch(str(size))
    if found is None:
        raise InvalidInput(f"{name} is a size such as '4GB' or '512MiB', not {size!r:.40}")
    unit = (1024 if found["binary"] else 1000) ** (1 + "KMGT".index(found["unit"].upper()))
    return int(float(found["number"]) * unit)


def is_begun(path: Path) -> bool:
    """Whether there is anything in the file: a full disk leaves an empty one where a store was to be made."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _remove_empty(path: Path) -> None:
    """Delete an empty file, which DuckDB would not take for one of its own, unless somebody is just making it."""
    with suppress(OSError), path.open("rb+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_size == 0:
            path.unlink()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _holder(message: str) -> str:
    """Whom DuckDB's message names."""
    holder = _HOLDER.search(message)
    if holder is None:
        return "another process"
    return f"process {holder['pid']} ({_command(int(holder['pid'])) or holder['command']})"


def _held(path: Path, message: str, wait: float) -> str:
    seconds = max(30, round(3 * wait))
    return (
        f"{path} is held by {_holder(message)}; wait for it, or pass wait={seconds} (--wait {seconds} on the command "
        f"line): what is recorded meanwhile is safe in {path.name}.spool"
    )


def _command(pid: int) -> str:
    """The command line of a process, where the system tells."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return ""
    return " ".join(words)[:120]


def _unreadable(path: Path, message: str, *, is_read: bool) -> StoreError:
    if not path.parent.is_dir():
        return StoreNotFound(
            f"there is no folder {path.parent} for the store {path.name}; create it, or give another path"
        )
    if is_read and not path.exists():
        return StoreNotFound(f"there is no store at {path}; record into it first, or give another path")
    if "not a valid DuckDB database" in message:
        return StoreVersionError(f"{path} is not a tracetune store, nor any DuckDB file; give another path")
    if path.is_dir():
        return StoreVersionError(f"{path} is a folder; give the path of a store, which is a file")
    return StoreError(f"{path} cannot be opened as a store ({message.splitlines()[0]}); {remedy(OSError(message))}")
