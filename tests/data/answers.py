"""A server that says whatever it is told to, byte by byte: what no well-behaved library would send."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def answering(answer: Iterable[bytes]) -> Iterator[str]:
    """The address of a server that gives every connection this answer, piece by piece."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(1 << 16)
                        for piece in answer:
                            if over.is_set():
                                break
                            connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            over.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)
