"""The bytes of a file without its compression, hashed as they lie on the disk."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

import zstandard

# Little, since a byte of some formats can become thousands.
CHUNK = 1 << 18
# Bytes that are taken of what compressed ones give, and compressed ones where all has to be taken.
_MOST = 1 << 20
_ZLIB = type(zlib.decompressobj())
_AT_ONCE = 1 << 10
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_WIDE_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
DAMAGED = "damaged or unreadable"
# What reading a damaged file raises.
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class UnreadableError(Exception):
    """A source file that cannot be read, or not to its end; the message says why."""


class HashedFile:
    """A file that is hashed and counted while it is read: `size` and `sha256` are of its bytes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Hash of what was read, in hexadecimal."""
        return self._digest.hexdigest()

    def read(self, size: int) -> bytes:
        """Returns the next bytes, none at the end."""
        found = self._file.read(size)
        self._digest.update(found)
        self.size += len(found)
        return found

    def read_to_end(self) -> None:
        """Hashes what is left."""
        while self.read(CHUNK):
            pass


def unreadable(error: Exception) -> UnreadableError:
    """Returns the error for a file that cannot be read, or not to its end."""
    if isinstance(error, OSError) and error.strerror:
        return UnreadableError(f"unreadable ({error.strerror})")
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    return UnreadableError(f"{DAMAGED} ({reason})")


def decompressed(file: HashedFile | BinaryIO) -> Iterator[bytes]:
    """Yields the bytes of a file in chunks, without compression and byte order mark.

    Compression is told by the first bytes, whatever the file is called: gzip, zstd (any window),
    xz and bzip2, several streams one after the other included.

    Raises:
      UnreadableError: text of two or four bytes a character. What is damaged or cut off raises
        what its library raises, once all that comes before has been yielded.
    """
    chunks = _decompressed(file)
    first = b""
    for chunk in chunks:  # empty ones are possible
        first += chunk
        if len(first) >= 4:
            break
    for mark, name in _WIDE_MARKS.items():
        if first.startswith(mark):
            raise UnreadableError(f"{name} text (save it as UTF-8)")
    yield first.removeprefix(BYTE_ORDER_MARK)
    yield from chunks


def _decompressed(file: HashedFile | BinaryIO) -> Iterator[bytes]:
    chunk = file.read(CHUNK)
    start = _decompressor(chunk)
    if start is None:
        while chunk:
            yield chunk
            chunk = file.read(CHUNK)
        return
    stream: Any = start()
    while chunk:
        if stream is None:
            if not chunk.strip(b"\0"):  # padding
                chunk = file.read(CHUNK)
                continue
            stream = (_decompressor(chunk) or start)()
        chunk = yield from _outputs(stream, chunk)
        if stream.eof:
            stream = None
        chunk = chunk or file.read(CHUNK)
    if stream is not None:
        raise EOFError("ends in the middle of its compressed data")


def _outputs(stream: Any, data: bytes) -> Generator[bytes, None, bytes]:
    """Yields what data decompress to, piece by piece: a few bytes may stand for gigabytes.

    Returns what stands behind the end of the stream.
    """
    rest = b""
    if isinstance(stream, lzma.LZMADecompressor | bz2.BZ2Decompressor):
        yield stream.decompress(data, _MOST)
        while not (stream.eof or stream.needs_input):
            yield stream.decompress(b"", _MOST)
    elif isinstance(stream, _ZLIB):
        yield stream.decompress(data, _MOST)
        while stream.unconsumed_tail:
            yield stream.decompress(stream.unconsumed_tail, _MOST)
    else:  # zstd cannot be asked for less: 128 KiB at most for each block of four bytes
        for start in range(0, len(data), _AT_ONCE):
            yield stream.decompress(data[start : start + _AT_ONCE])
            if stream.eof:
                rest = data[start + _AT_ONCE :]
                break
    return stream.unused_data + rest if stream.eof else b""


def _decompressor(start: bytes) -> Callable[[], Any] | None:
    """Returns what makes a decompressor of the format that begins with these bytes, if any does."""
    if start.startswith(b"\x1f\x8b"):
        return lambda: zlib.decompressobj(wbits=31)
    if start.startswith(b"\x28\xb5\x2f\xfd") or start[1:4] == b"\x2a\x4d\x18":  # a frame to skip
        return lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
    if start.startswith((b"\xfd7zXZ\0", b"\x5d\0\0")):
        return lambda: lzma.LZMADecompressor(memlimit=1 << 31)
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return bz2.BZ2Decompressor
    return None
