"""An empty cache for every test that asks for one, tiny files in the published format, and a web server."""

from __future__ import annotations

import gzip
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plastax.data import idx
from tests.data.formats import idx_bytes


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fetched data sets go in this test; nothing there yet, and no ``PLASTAX_DATA``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PLASTAX_DATA", raising=False)
    return tmp_path / "cache" / "plastax" / "data"


@pytest.fixture
def idx_files() -> dict[str, bytes]:
    """The four files of a tiny data set, compressed, by name."""
    rng = np.random.default_rng(0)
    contents = {
        idx.TRAIN_IMAGES: rng.integers(0, 256, (20, 28, 28)),
        idx.TRAIN_LABELS: rng.integers(0, 10, 20),
        idx.TEST_IMAGES: rng.integers(0, 256, (10, 28, 28)),
        idx.TEST_LABELS: rng.integers(0, 10, 10),
    }
    return {f"{name}.gz": gzip.compress(idx_bytes(array), mtime=0) for name, array in contents.items()}


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` by name; ``faults[name]`` are spent one a request before the file is served whole.

    A fault is a status code, or: "cut" (breaks off half way), "stall" (falls silent half way), "whole" (ignores the
    range), "shifted" (continues at another byte), "short" (half the file, as if it were all), "long" (more than the
    file).
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.closing = threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, asked = self.path.lstrip("/"), self.headers.get("Range")
        self.server.requests.append((name, asked))
        faults = self.server.faults.get(name)
        fault = faults.pop(0) if faults else None
        if name not in self.server.files or isinstance(fault, int):
            self.send_error(fault if isinstance(fault, int) else 404)
            return
        content = self.server.files[name]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and fault != "whole" else 0
        if start >= len(content):
            self.send_error(416)
            return
        body = content[start:]
        if fault == "short":
            body = body[: len(body) // 2]
        self.send_response(206 if start else 200)
        if start:
            shift = 1 if fault == "shifted" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{len(content) - 1}/{len(content)}")
        if fault == "long":
            body += b"more"
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault in ("cut", "stall") else body)
        if fault == "stall":
            self.wfile.flush()
            self.server.closing.wait(5)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def stopwatch():
    """Seconds since the test began."""
    began = time.monotonic()
    return lambda: time.monotonic() - began
