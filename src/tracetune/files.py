"""Files and folders that are their owner's alone, and there whole or not at all.

Traces hold prompts, answers and whatever a program was given, and the usual umask lets
everybody on a machine read a new file. So new files have mode 0600 and new folders 0700,
whatever the umask, which belongs to the whole process and is never changed. What exists
already keeps its mode. A library that writes by path writes into a file or a folder that
was made private before.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_READ_AND_WRITE = 0o666


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, for their owner alone; one that exists stays as it is.

    Raises:
        OSError: if it cannot be made, or there is a file in its place.
    """
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for each in reversed(missing):
        try:
            each.mkdir(FOLDER_MODE)
        except FileExistsError:
            if not each.is_dir():
                raise


def make_file(path: Path) -> None:
    """Make an empty file for its owner alone; one that exists keeps its mode and what is in it."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, which is its owner's alone if it is new."""
    make_file(path)
    path.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a file as UTF-8, which is its owner's alone if it is new."""
    write_bytes(path, content.encode())


def make_private(folder: Path) -> None:
    """Leave everything inside a folder to its owner alone; the folder itself is not touched."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(FOLDER_MODE if path.is_dir() else FILE_MODE)


def mode_inside(folder: Path) -> int:
    """The mode of a new file in a folder that a team may share: it is read and written by whom the folder is.

    Example:
        >>> folder = Path("shared")
        >>> folder.mkdir()
        >>> folder.chmod(0o770)
        >>> oct(mode_inside(folder))
        '0o660'
    """
    return folder.stat().st_mode & _READ_AND_WRITE


@contextmanager
def private_folder_beside(path: Path) -> Iterator[Path]:
    """A new folder that only its owner can look into, on the same disk as a path; it is gone after the block.

    What is written there is moved into its place when it is whole, and has its mode by then.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent))  # made with 0700
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A private path, whose content takes a place at the end of the block; nothing is left where the block fails.

    What was at the place before stays until then, and a file's mode stays also after that. A
    folder may take the place of an empty folder.

    Example:
        >>> with written_whole(Path("rows.txt")) as unfinished:
        ...     _ = unfinished.write_text("all of it")
        >>> Path("rows.txt").read_text()
        'all of it'
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not (place.is_file() or place.is_dir()):
        yield place  # a pipe or a device is written to as it is
        return
    # An empty folder may be a disk of its own, or where somebody stands: it is filled, and not replaced.
    is_filled = place.is_dir()
    with private_folder_beside(place / place.name if is_filled else place) as folder:
        unfinished = folder / place.name
        yield unfinished
        make_private(folder)
        if is_filled:
            for child in unfinished.iterdir():
                child.rename(place / child.name)
            return
        if place.exists():
            unfinished.chmod(stat.S_IMODE(place.stat().st_mode))
        os.replace(unfinished, place)
