"""Downloads from servers that may break off, fall silent, or send nonsense.

It rests on the standard library, because pooch cannot resume a download, and fsspec can neither resume nor check one.
No server is trusted: size and time are bounded, and an answer that makes no sense is an error of its source. Whoever
reads the files compares checksums.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from plastax.data.base import SourceError
from plastax.output import Console

TIMEOUT = 10.0
"""Seconds without a connection or a byte. Then the mirror is asked again, or the next one."""
GRACE = 30.0
"""Seconds after which the mean rate of a connection must be `RATE`."""
RATE = 1 << 14
"""Bytes a second. With the limit of a file's size, it bounds the time that a server can take."""
ATTEMPTS = 5
"""Most connections to a mirror for one file."""
BACKOFF = 1.0
"""Seconds before the second attempt; they double with each one."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
CHUNK = 1 << 16


class _Cut(Exception):
    """A transfer that ended early; another attempt may help."""


def download(
    url: str, path: Path, limit: int, *, timeout: float = TIMEOUT, attempts: int = ATTEMPTS, backoff: float = BACKOFF
) -> None:
    """Fetches ``url`` into ``path``, which appears when it is whole.

    Until then, the bytes are in ``<path>.part``. A later call continues there, if the server can.

    Args:
      url: what to fetch.
      path: of the file; its folder must exist.
      limit: most bytes that it may have.
      timeout: seconds without a connection or a byte.
      attempts: most connections.
      backoff: seconds before the second attempt; they double with each one.

    Raises:
      SourceError: the server cannot be reached, refuses, breaks off too often, is slower than `RATE`, sends more than
        ``limit`` bytes, or gives an answer that makes no sense.
      OSError: the file cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    bar = Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
    task = bar.add_task(path.name, total=None)
    with contextlib.ExitStack() as shown:

        def report(done: int, total: int | None) -> None:
            # Started by the first byte, so that a mirror without an answer leaves no empty bar.
            if not bar.live.is_started:
                shown.enter_context(bar)
            bar.update(task, completed=done, total=total)

        for attempt in range(attempts):
            if attempt:
                time.sleep(backoff * 2 ** (attempt - 1))
            try:
                _transfer(url, part, limit, timeout, attempt, report)
                break
            except _Cut as error:
                why = error
        else:
            raise SourceError(f"{url}: gave up after {attempts} attempts ({why})")
    os.replace(part, path)


def _transfer(
    url: str, part: Path, limit: int, timeout: float, attempt: int, report: Callable[[int, int | None], None]
) -> None:
    """One connection: appends to ``part`` what is missing."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "plastax", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
        elif error.code not in TRANSIENT:
            raise SourceError(f"{url}: HTTP {error.code} {error.reason}") from error
        raise _Cut(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        # A server that has answered may come back. For one that never has, the next source is asked.
        raise _Cut(str(reason)) if attempt else SourceError(f"{url}: {reason}") from error
    except ValueError as error:  # a redirection to something that is no address
        raise SourceError(f"{url}: an answer that makes no sense ({error})") from error
    with response:
        length = response.headers.get("Content-Length")
        if length is not None and not re.fullmatch("[0-9]{1,18}", length):
            raise SourceError(f"{url}: an answer that makes no sense (Content-Length: {length})")
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _Cut("the server continues at another byte than it was asked for")
        done = start if resumed else 0
        total = None if length is None else done + int(length)
        with part.open("ab" if resumed else "wb") as file:
            for chunk in _chunks(response):
                done += len(chunk)
                if max(done, total or 0) > limit:
                    part.unlink()
                    raise SourceError(f"{url}: sends more than the {limit:,} bytes that it may have")
                file.write(chunk)
                report(done, total)
    if total is not None and done < total:
        raise _Cut(f"broke off after {done:,} of {total:,} bytes")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body, piece by piece. Errors of the network become `_Cut`, those of the code that writes it do not."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Cut(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


class _Paced(io.RawIOBase):
    """What a server sends, headers and body, while it is fast enough: a timeout only notices silence."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self.raw, self.began, self.count = raw, time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        elapsed = time.monotonic() - self.began
        if elapsed > GRACE and self.count < RATE * elapsed:
            raise TimeoutError(f"slower than {RATE} bytes a second")
        count: int | None = self.raw.readinto(buffer)  # type: ignore[attr-defined]
        self.count += count or 0
        return count

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp = io.BufferedReader(_Paced(self.fp.detach()))


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens http and https addresses with the connections above."""

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request)


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows redirections without reading their bodies, which may be endless."""

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """An opener without ftp, files, and data in the address: no redirection may lead there."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _Redirections,
        urllib.request.HTTPErrorProcessor,
        _Handler,
    ):
        opener.add_handler(handler())
    return opener
