"""Files of a run directory: written completely or not at all, checked when read, moved aside rather than deleted."""

from __future__ import annotations

import dataclasses
import errno
import functools
import io
import json
import os
import stat
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from plastax.errors import RecordError, Unreadable

PathLike = str | os.PathLike[str]

MOST_JSON = 1 << 26
"""Bytes of the largest JSON file that is read."""

ASIDE = "aside"
"""Folder beside a file, for what the file has replaced."""

_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def write_atomic(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Lets ``write`` fill a file, which appears under ``path`` complete and durable, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory, because os.replace is atomic only within one file system.
    # Random, because processes on several machines may have the same number and write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename is stored in the directory: without this, a power cut may lose it.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_unfinished(folder: Path) -> None:
    """Removes the temporary files of processes that were killed in `write_atomic`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def aside(path: Path) -> Path:
    """Moves a file or folder into the folder `ASIDE` beside it; returns the new path."""
    folder = path.parent / ASIDE
    folder.mkdir(exist_ok=True)
    names = (f"{path.stem}{f'-{k}' if k else ''}{path.suffix}" for k in range(1_000_000))
    free = next(folder / name for name in names if not os.path.lexists(folder / name))
    return path.rename(free)


def regular(path: Path) -> os.stat_result:
    """`os.stat` of a regular file.

    Raises:
      FileNotFoundError: the file does not exist.
      Unreadable: the system does not allow it.
      RecordError: it is a folder, a device or a pipe.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise trouble(path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise RecordError(f"{path} is not a regular file")
    return found


def trouble(path: Path, error: OSError) -> FileNotFoundError | Unreadable:
    """The error to raise for an error of the system: the file is missing, or exists and cannot be read."""
    if error.errno in _NOT_THERE:
        return FileNotFoundError(error.errno, os.strerror(error.errno), os.fspath(path))
    return Unreadable(f"{path} cannot be read ({error.strerror or error}); nothing was changed; try again when it can")


def read_bytes(path: PathLike, most: int = 1 << 40) -> bytes:
    """The content of a regular file; errors as of `regular`, and `RecordError` above ``most`` bytes."""
    path = Path(path)
    if (size := regular(path).st_size) > most:
        raise RecordError(f"{path} has {size} bytes; such a file has at most {most}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise trouble(path, error) from error
    except MemoryError as error:
        raise RecordError(f"{path} has {size} bytes, more than fits into memory") from error


def arrays(archive: bytes) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed ``.npz`` archive: none takes more memory than the archive.

    `numpy.load` parses the header of every array as Python, and `zipfile` every entry of the directory: most of the
    time for small arrays. Here arrays are read one after the other, as `numpy.savez` writes them.

    Raises:
      Exception: the archive is damaged, or holds something else; the class depends on which byte is wrong.

    References:
      PKWARE, "APPNOTE.TXT - .ZIP File Format Specification", sections 4.3.7 (headers), 4.3.16 (end), 4.5.3 (sizes).
    """
    count, directory = struct.unpack_from("<H4xI", archive, archive.rindex(b"PK\5\6") + 10)
    out, place = {}, 0
    for _ in range(count):
        magic, packed, checksum, size, name, extra = struct.unpack_from("<4s4xH4xI4xIHH", archive, place)
        place += 30 + name
        key = archive[place - name : place].decode().removesuffix(".npy")
        if size == 0xFFFFFFFF:
            (size,) = struct.unpack_from("<Q", archive, place + 4)
        place += extra + size
        content = archive[place - size : place]
        if magic != b"PK\3\4" or packed or zlib.crc32(content) != checksum:
            raise ValueError(f"bad content of {key}")
        start = 10 + int.from_bytes(content[8:10], "little")
        shape, fortran, dtype = _header(content[:start])
        flat = np.frombuffer(content, dtype, offset=start)
        out[key] = flat.reshape(shape, order="F" if fortran else "C").copy()
    if place != directory:
        raise ValueError(f"{count} arrays end at byte {place}, and the directory is at {directory}")
    return out


@functools.lru_cache(1024)
def _header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and type of an array in NumPy's format 1.0."""
    file = io.BytesIO(start)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another format than 1.0")
    return np.lib.format.read_array_header_1_0(file)


def entries(folder: Path) -> list[Path]:
    """The content of a folder by name; empty if the folder is missing; raises `Unreadable` if it cannot be opened."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        if isinstance(missing := trouble(folder, error), FileNotFoundError):
            return []
        raise missing from error


def _jsonable(value: Any) -> Any:
    """The ``default`` of `json.dumps`, for dataclasses, paths and NumPy values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} {value!r} cannot be written to JSON")


def write_json(path: PathLike, value: Any) -> None:
    """Writes an object as indented JSON, atomically, with a checksum of its content as its last entry.

    Args:
      path: the file.
      value: a mapping or dataclass of JSON types, dataclasses, paths, NumPy arrays and scalars.

    Raises:
      TypeError: for anything else.
    """
    plain = json.loads(json.dumps(value, default=_jsonable))
    text = json.dumps({**plain, "checksum": _checksum(plain)}, indent=2) + "\n"
    write_atomic(Path(path), lambda file: file.write(text.encode()))


def _checksum(plain: Mapping[str, Any]) -> int:
    """CRC-32 of JSON content, independent of its layout."""
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


def read_json(path: PathLike, shape: Any = None) -> dict[str, Any]:
    """Reads what `write_json` wrote, and drops the checksum, which files of earlier versions lack.

    Args:
      path: the file.
      shape: what the object must look like, see `mismatch`.

    Raises:
      FileNotFoundError: the file does not exist.
      Unreadable: it exists and cannot be read.
      RecordError: it is damaged, not a JSON object, or of another shape; the message names the file.
    """
    raw = read_bytes(path, MOST_JSON)
    try:
        value = json.loads(raw)
        checksum = value.pop("checksum", None) if isinstance(value, dict) else None
        whole = checksum is None or checksum == _checksum(value)
    # Also for bytes that are not text, numbers of a million digits, and endless brackets.
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} does not hold a JSON object")
    if not whole:
        raise RecordError(
            f"{path} does not match its checksum: it is damaged; put it back from a copy (if you changed it, "
            'delete its line "checksum")'
        )
    if wrong := mismatch(value, shape):
        raise RecordError(f"{path}: {wrong}")
    return value


def mismatch(value: Any, shape: Any, name: str = "") -> str:
    """How a JSON value differs from a shape, in words; "" if it fits.

    Args:
      value: the value.
      shape: a type or union of types; ``[shape]``: a list of such items; ``{...: shape}``: an object of such values;
        ``{name: shape}``: an object whose entries, if it has them, are such; None: anything.
      name: of the value.
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is not a list"
        shape, value = {...: shape[0]}, dict(enumerate(value))
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{name} is not an object"
        found = (mismatch(v, shape.get(k, shape.get(...)), f"{name}{'.' * bool(name)}{k}") for k, v in value.items())
        return next(filter(None, found), "")
    # In Python, booleans are whole numbers.
    if shape is not None and (not isinstance(value, shape) or (isinstance(value, bool) and shape is int)):
        return f"{name} is {value!r:.60}, not {getattr(shape, '__name__', shape)}"
    return ""
