"""Downloads from servers that may break off, fall silent, or talk nonsense.

This is our own, on the standard library, because the libraries that could do it leave out a part: pooch has checksums
and retries but starts a cut download from its beginning; the file systems of fsspec neither resume nor check. No server
is believed: what it sends is bounded in size and in time, and an answer that makes no sense is an error of its source.
Checksums are not the download's affair.
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
"""Seconds without a connection or without a byte after which a mirror is given up or asked again."""
GRACE = 30.0
"""Seconds after which a connection must have brought `RATE` bytes for each of its seconds."""
RATE = 1 << 14
"""Bytes a second. With the largest size of a file it bounds the time that any server can take."""
ATTEMPTS = 5
"""Connections for one file before its mirror is given up."""
BACKOFF = 1.0
"""Seconds before the second attempt; doubles with each one."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
CHUNK = 1 << 16


class _Cut(Exception):
    """A transfer that ended early and is worth another attempt."""


def download(
    url: str, path: Path, limit: int, *, timeout: float = TIMEOUT, attempts: int = ATTEMPTS, backoff: float = BACKOFF
) -> None:
    """Fetches ``url`` into ``path``, which appears only when it is whole.

    The transfer goes to ``<path>.part``, which a later call continues from its last byte if the server can.

    Args:
      url: what to fetch.
      path: where it goes; its folder must exist.
      limit: the most bytes that it may have.
      timeout: seconds without a connection or without a byte.
      attempts: connections in all.
      backoff: seconds before the second attempt; doubles with each one.

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
            # From the first byte on: a mirror that does not answer leaves no empty bar.
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
    """One connection: appends to ``part`` what it does not have yet."""
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
        # A server that was there a moment ago may come back; one that never answered is left for the next source.
        raise _Cut(str(reason)) if attempt else SourceError(f"{url}: {reason}") from error
    except ValueError as error:  # a redirection to what is no address
        raise SourceError(f"{url}: an answer that makes no sense ({error})") from error
    with response:
        length = response.headers.get("Content-Length")
        if length is not None and not re.fullmatch("[0-9]{1,18}", length):
            raise SourceError(f"{url}: an answer that makes no sense (Content-Length: {length})")
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise _Cut("the server continues at another byte than asked for")
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
    """The body, piece by piece; only the network's errors are turned into `_Cut`, never those of who writes it."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Cut(str(error) or type(error).__name__) from error
        if not chunk:
            return
        yield chunk


class _Paced(io.RawIOBase):
    """What a server sends, headers and body, as long as it comes fast enough: a timeout sees silence only."""

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
    """Opens http and https addresses by the connections above."""

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request)


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows redirections without their bodies, which urllib reads to their end, if they have one."""

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        fp.close()
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """urllib's, without what a redirection has no business with: ftp, files and data in the address itself."""
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
