"""Reads files from strangers and trusts nothing that they announce.

A few kilobytes may unpack to gigabytes, and a short header may promise terabytes. So everything here takes a limit and
never reads, unpacks or allocates more. The content tells whether a file is compressed, not its name: browsers unpack
files and leave the ``.gz``.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import math
import os
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from plastax.data.base import DataError
from plastax.errors import ConfigError

CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
MEMBERS = 10_000
"""Most members of a tar archive. Published ones have a few; a list of millions would fill the memory."""


@contextlib.contextmanager
def reading(label: str | Path) -> Iterator[None]:
    """Turns errors of files and of memory into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or label}: cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise DataError(f"{label}: does not fit into the memory that is free") from error


@contextlib.contextmanager
def refusing(path: str | Path, kind: str, remedy: str = "delete it and get it again") -> Iterator[None]:
    """Turns whatever goes wrong while ``path`` is read as ``kind`` into a `DataError` that says what to do.

    It does not call a file damaged that cannot be read: nobody should delete it for that.
    """
    with reading(path):
        try:
            yield
        except (ConfigError, MemoryError):
            raise
        # For damaged files, zipfile, tarfile, zlib and numpy raise errors of many kinds, even AttributeError. EINVAL
        # comes from a seek to a place before the file.
        except Exception as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            reason = " ".join(str(error)[:200].split()) or type(error).__name__
            raise DataError(f"{path}: damaged, cut short or not {kind} ({reason}); {remedy}") from error


class Limited:
    """A stream that fails before it gives more than ``limit`` bytes in all."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.limit, self.left = stream, limit, limit

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; none at the end."""
        piece = self.stream.read(min(size, self.left + 1))
        self.left -= len(piece)
        if self.left < 0:
            raise ValueError(f"larger than the {self.limit:,} bytes that are expected")
        return piece


@contextlib.contextmanager
def unpacked(path: Path, limit: int) -> Iterator[Limited]:
    """The content of a file as a stream of at most ``limit`` bytes, decompressed if it is compressed by gzip."""
    with path.open("rb") as file:
        # gzip makes no file much larger. Without this check, a file of millions of empty parts would be unpacked.
        if (size := os.fstat(file.fileno()).st_size) > limit + CHUNK:
            raise ValueError(f"{size:,} bytes, where at most {limit:,} are expected")
        compressed = file.peek(len(GZIP))[: len(GZIP)] == GZIP
        yield Limited(gzip.GzipFile(fileobj=file) if compressed else file, limit)  # type: ignore[arg-type]


def content(path: Path, limit: int) -> bytes:
    """The bytes of a file, decompressed if it is compressed by gzip.

    Raises:
      DataError: it cannot be read, is damaged, or has more than ``limit`` bytes.
    """
    with refusing(path, "a whole file"), unpacked(path, limit) as stream:
        return b"".join(iter(lambda: stream.read(CHUNK), b""))


def whole(file: BinaryIO, limit: int) -> bytearray:
    """All bytes of a file that can seek.

    Raises:
      ValueError: it has more than ``limit`` bytes.
    """
    size = file.seek(0, io.SEEK_END)
    if size > limit:
        raise ValueError(f"{size:,} bytes, where at most {limit:,} are expected")
    file.seek(0)
    return exactly(file, size)


def members(stream: Limited, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Regular files of a tar archive, by name.

    Args:
      stream: the archive, decompressed.
      limits: name of each wanted file -> its largest size.

    Raises:
      ValueError, tarfile.TarError, ...: a file is larger, or the archive is damaged.
    """
    found: dict[str, bytes] = {}
    # One pass over the bytes: nothing is unpacked twice, and links are not followed.
    with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
        for number, member in enumerate(tar):
            if number >= MEMBERS:
                raise ValueError(f"more than {MEMBERS:,} files in the archive")
            name = member.name.removeprefix("./")
            if name in limits and member.isreg():
                if member.size > limits[name]:
                    raise ValueError(f"{name} is larger than the {limits[name]:,} bytes that are expected")
                found[name] = bytes(exactly(tar.extractfile(member), member.size))  # type: ignore[arg-type]
    # tarfile stops at the archive's end mark, but gzip compares its checksum at the end of the file.
    while stream.read(CHUNK):
        pass
    return found


class _Clipped:
    """A file that reads at most `CHUNK` bytes at a time: zipfile reads the list of members at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell, self.seekable = file, file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        return self.file.read(CHUNK if size < 0 else min(size, CHUNK))


def archive(file: BinaryIO) -> zipfile.ZipFile:
    """A zip archive whose list of members has at most `CHUNK` bytes.

    Raises:
      zipfile.BadZipFile: it is damaged or no zip archive, or its list of members is larger.
    """
    return zipfile.ZipFile(_Clipped(file))  # type: ignore[call-overload]


@contextlib.contextmanager
def member(zipped: zipfile.ZipFile, name: str, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """A member of a zip archive and its size.

    Raises:
      ValueError: it is larger than ``limit`` bytes, or not compressed by deflate (LZMA reserves as much
        memory as the archive asks for).
    """
    info = zipped.getinfo(name)
    if info.file_size > limit or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{name} has {info.file_size:,} bytes, where at most {limit:,} are expected, or another compression than "
            "deflate"
        )
    with zipped.open(info) as stream:
        yield stream, info.file_size  # type: ignore[misc]


def exactly(stream: BinaryIO, size: int) -> bytearray:
    """The next ``size`` bytes, read in pieces into one buffer; raises `EOFError` if there are fewer."""
    buffer = bytearray(size)
    view, done = memoryview(buffer), 0
    while done < size:
        count = stream.readinto(view[done : done + CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{done:,} bytes, where {size:,} are promised")
        done += count
    return buffer


HEADER = 1000
"""Most characters in the header of an ``.npy`` file; one of numbers has fewer."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def npy(stream: BinaryIO, size: int) -> np.ndarray:
    """The array in an ``.npy`` file of ``size`` bytes.

    Raises:
      ValueError, KeyError, ...: it is damaged, holds anything but numbers, or is not as long as its header says.
    """
    start: Any = Limited(stream, size)
    version = np.lib.format.read_magic(start)  # type: ignore[no-untyped-call]
    shape, fortran, dtype = _HEADERS[version](start, max_header_size=HEADER)  # type: ignore[no-untyped-call]
    promised, there = math.prod(shape) * dtype.itemsize, start.left
    if dtype.kind not in "buif" or promised != there:
        raise ValueError(f"{dtype} {shape}, where numbers are expected, {promised:,} bytes in {there:,}")
    return np.frombuffer(exactly(stream, promised), dtype).reshape(shape, order="F" if fortran else "C")
