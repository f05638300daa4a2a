"""Printing: texts are shown literally, and a closed pipe or terminal does no harm."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NoReturn, cast

import rich.console
from rich.segment import Segment
from rich.text import Text

from plastax.errors import ConfigError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor or change its colours or text direction; not tabs and ends of lines."""


def plain(text: str) -> str:
    """A text with its control characters written out: the escape character becomes a backslash, x, 1 and b."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Console(rich.console.Console):
    """A terminal that shows markup, emoji and control characters literally, and that may be closed.

    Args:
      **options: see `rich.console.Console`.

    Attributes:
      pause: least seconds between two lines of progress, where this is not a terminal.
    """

    pause = 0.0

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See `rich.console.Console.render_str`. Characters that are written out take room in tables, too."""
        return super().render_str(plain(text), **options)

    def render(self, renderable: Any, options: rich.console.ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich.console.Console.render`. Rich cuts other texts than strings where they become too long."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))

    def on_broken_pipe(self) -> None:
        """Becomes silent; rich would end the process."""
        self.quiet = True


def say(console: rich.console.Console, text: str, style: str | None = None, *, wrap: bool = False) -> None:
    """Prints lines as they are: unbroken, so that paths can be copied; ``wrap``: broken between words on a terminal."""
    soft = not (wrap and console.is_terminal)
    console.print(plain(text), style=style, markup=False, emoji=False, highlight=False, soft_wrap=soft)


@contextlib.contextmanager
def waiting(console: rich.console.Console, text: str, *, clock: bool = True) -> Iterator[None]:
    """Says what is waited for: with a running clock on a terminal, unless without ``clock``; as a line elsewhere."""
    if not (console.is_terminal and clock):
        say(console, text)
        yield
        return
    import rich.progress as progress

    columns = progress.SpinnerColumn(), progress.TextColumn("{task.description}", markup=False)
    with progress.Progress(*columns, progress.TimeElapsedColumn(), console=console, transient=True) as shown:
        shown.add_task(plain(text), total=None)
        yield


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """In it, tyro reads a command line. What tyro refuses is a `ConfigError` of one line instead of a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as error:
        if not error.code:
            raise

        def rule(line: str) -> bool:
            return not line.strip("─╰╯- ")

        # The box has a title and rules between its parts; the last part tells of --help.
        _, *lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[\d;]*m", "", said.getvalue()).splitlines()]
        text = " ".join(itertools.takewhile(lambda line: not rule(line), itertools.dropwhile(rule, lines)))
        raise ConfigError(
            re.sub(r"^Error parsing (\S+: )(\S+: )?", lambda found: found[2] or found[1], text)
        ) from error


def tell(text: str) -> None:
    """Prints one line to standard error, about what is being done."""
    print(plain(text).replace("\n", " "), file=sys.stderr, flush=True)


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints one line to standard error and ends the process."""
    tell(message)
    raise SystemExit(status)


class _Lossy(io.FileIO):
    """An open file that accepts everything and drops what the system refuses (EPIPE, ENOSPC, EIO)."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        with contextlib.suppress(OSError):
            while left:
                # None: a descriptor that must not block would block.
                left = left[super().write(left) or len(left) :]
        return memoryview(data).nbytes


def make_lossy() -> None:
    """Makes a closed, full or narrowly encoded standard output or error cause no error, now or at exit.

    For the start of a program. Streams that a notebook or test has put in their place stay as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream is not getattr(sys, f"__{name}__"):
            continue
        with contextlib.suppress(OSError):
            stream.flush()
        # The new stream keeps this for the rest of the process; the descriptor stays with its owner.
        raw = _Lossy(stream.fileno(), "w", closefd=False)
        lossy = io.TextIOWrapper(
            cast("BinaryIO", raw) if stream.write_through else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, lossy)
