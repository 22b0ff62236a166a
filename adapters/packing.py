"""Files as they were before they were packed: gzip and Zstandard, told by their first bytes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from tracetune.errors import MissingDependency

_BLOCK_BYTES = 1024 * 1024
# Few, since a few bytes can unpack to very many.
_PACKED_BYTES = 1024
# No log is so much smaller packed; what is may be meant to fill memory and disk.
MOST_RATIO = 500
_UNSUSPECTED_BYTES = 1024 * 1024 * 1024


def unpacked(file: BinaryIO) -> io.BufferedReader:
    """A file's content, unpacked where it is packed.

    Reading it raises OSError or EOFError at the byte where what is packed breaks off.

    Raises:
        MissingDependency: if it is Zstandard's, whose package is not installed.

    Example:
        >>> import gzip
        >>> unpacked(io.BytesIO(gzip.compress(b"{}"))).read()
        b'{}'
    """
    whole = _peekable(file)
    start = whole.peek(4)[:4]
    if start.startswith(b"\x1f\x8b"):
        return _peekable(_Unpacked(whole, lambda: zlib.decompressobj(wbits=31), zlib.error))
    if start == b"\x28\xb5\x2f\xfd":
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise MissingDependency(
                "the file is packed by Zstandard; pip install 'tracetune[otlp]', or unpack it first"
            ) from error
        return _peekable(_Unpacked(whole, lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError))
    return whole


def skip_blank(file: io.BufferedReader) -> int:
    r"""Skip white space, a block at a time; gives how many lines ended in it.

    Example:
        >>> file = io.BufferedReader(io.BytesIO(b"\n \n{}\n"))
        >>> skip_blank(file), file.read()
        (2, b'{}\n')
    """
    ended = 0
    while True:
        ahead = file.peek()
        blank = len(ahead) - len(ahead.lstrip())
        if not blank:
            return ended
        ended += file.read(blank).count(b"\n")


def _peekable(file: Any) -> io.BufferedReader:
    return io.BufferedReader(cast("io.RawIOBase", file), _BLOCK_BYTES)


class _Unpacked(io.RawIOBase):
    """Unpacks a file of gzip members or Zstandard frames, up to the byte where it breaks off."""

    def __init__(self, file: BinaryIO, frame: Callable[[], Any], broken: type[Exception]) -> None:
        self._file = file
        self._begin = frame
        self._broken = broken
        self._frame = frame()
        self._packed = b""
        self._unpacked = memoryview(b"")
        self._n_packed = self._n_unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            packed = self._packed
            if not packed:
                packed = self._file.read(_PACKED_BYTES)
                self._n_packed += len(packed)
            if not packed:
                if not self._frame.eof:
                    raise EOFError("it breaks off in the middle of what is packed")
                return 0
            if self._frame.eof:  # another one follows
                self._frame = self._begin()
            try:
                self._unpacked = memoryview(self._frame.decompress(packed))
            except self._broken as error:
                raise OSError(str(error)) from error
            self._packed = self._frame.unused_data
            self._n_unpacked += len(self._unpacked)
            if self._n_unpacked > max(_UNSUSPECTED_BYTES, MOST_RATIO * self._n_packed):
                raise OSError(
                    f"it unpacks to more than {MOST_RATIO} times its size; if that is right, unpack it and import that"
                )
        count = min(len(buffer), len(self._unpacked))
        buffer[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count
